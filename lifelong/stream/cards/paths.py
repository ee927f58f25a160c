"""Files that the patterns of a card name, and a digest of their content.

A card may read what is below its own folder and what it names in full: an absolute path or one that begins
with a variable. It may not climb out with `..`: a card that was downloaded from somewhere must show at
first sight what it reads.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from lifelong.errors import InputError, did_you_mean
from lifelong.schema import Section

Patterns = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class CardFile(Section):
    """A named card. `path` is the file it was read from, whose folder relative paths start from."""

    name: str
    path: Path | None = Field(None, exclude=True)

    @property
    def folder(self) -> Path:
        """Folder that relative paths of the card start from."""
        return self.path.parent if self.path else Path()


def expand_patterns(card: CardFile, patterns: Iterable[str], where: str) -> list[Path]:
    """Files that match, without repetition, in alphabetical order within each pattern.

    Raises:
        InputError: a variable is not set, a pattern leaves the card's folder, or nothing matches.
    """
    place = f"{card.path or card.name}: {where}"
    found: dict[Path, None] = {}
    for pattern in patterns:
        expanded = expand_variables(pattern, place)
        if ".." in Path(expanded).parts:
            raise InputError(
                f"{place}: {pattern!r} must not contain '..'; write the full path, "
                "or begin it with a variable such as $LIFELONG_DATA"
            )
        full = str(Path(glob.escape(str(card.folder))) / expanded)
        # Path.glob takes no absolute pattern
        names = sorted(glob.glob(full, recursive=True))  # noqa: PTH207
        matches = [path for path in map(Path, names) if path.is_file()]
        if not matches and names:
            inside = f"{pattern.rstrip('/')}/*.jsonl.gz"
            raise InputError(f"{place}: {pattern!r} is a folder; name its files, for example {inside}")
        if not matches:
            raise InputError(f"{place}: {pattern!r} matches no file{_nearest_file(Path(full))}")
        found.update(dict.fromkeys(matches))
    return list(found)


def expand_variables(pattern: str, place: str) -> str:
    """`$NAME`, `${NAME}` and a leading `~` expanded; a variable that is not set is an InputError."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise InputError(
                f"{place}: {pattern!r} needs the variable {name}, which is not set; "
                f"set it to the folder meant, for instance: export {name}=/path/to/folder"
            )
        return os.environ[name]

    return str(Path(_VARIABLE.sub(value, pattern)).expanduser())


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}" if not glob.has_magic(str(folder)) else ""
    names = sorted(item.name for item in folder.iterdir() if item.is_file())
    return f" in {folder}" + did_you_mean(path.name, names, limit=8)


def file_digest(path: Path, memo_dir: Path | None = None) -> str:
    """BLAKE2b of the content. With `memo_dir`, a file of the same path, size and time is not read again.

    The content alone counts: the same corpus in another place has the same fingerprint.
    """
    status = path.stat()
    name = str(path.resolve())
    state = [name, status.st_size, status.st_mtime_ns]
    memo = None
    if memo_dir is not None:
        memo = memo_dir / (hashlib.blake2b(name.encode(), digest_size=16).hexdigest() + ".json")
        try:
            known = json.loads(memo.read_text(encoding="utf-8"))
            if known["state"] == state:
                return str(known["digest"])
        except (OSError, ValueError, KeyError):
            pass
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if memo is not None:
        memo.parent.mkdir(parents=True, exist_ok=True)
        temporary = memo.with_name(f".{memo.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"state": state, "digest": digest.hexdigest()}), encoding="utf-8")
        temporary.replace(memo)
    return digest.hexdigest()
