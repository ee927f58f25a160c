"""What the user of this machine has allowed strangers' files to name: a run folder's recipe, or a card.

Remembered by the name alone, under `$XDG_STATE_HOME/lifelong/allowed`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from lifelong.files import write_text


def remember_allowed(names: Iterable[str]) -> None:
    """Note that the user of this machine has asked for these names; without a home folder it is asked again."""
    with contextlib.suppress(OSError, RuntimeError):
        for name in names:
            write_text(_allowed_file(name), f"{name}\n")


def not_allowed(names: Iterable[str]) -> list[str]:
    """Those of the names that nobody here has asked for."""
    return [name for name in names if not _allowed_file(name).is_file()]


def _allowed_file(name: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "lifelong" / "allowed" / f"{hashlib.sha256(name.encode()).hexdigest()}.txt"
