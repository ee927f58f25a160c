"""Differences between two recipes, and which of them a run folder accepts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lifelong.ledger.ledger import Ledger


def can_amend(ledger: Ledger, different: Sequence[str]) -> bool:
    """Whether these keys may change: they say how to train, and no stage is committed or the next broke its budget."""
    done = len(ledger.stages)
    if done and not ledger.folder.was_rejected(done):
        return False
    sections = {"replay", "budget", "inherit", "recover", "methods", "train", "lr", "carry_optimizer"}

    def concerns_the_future(key: str) -> bool:
        stage = re.match(r"stages\[(\d+)\]\.(tokens|train|select)", key)
        return int(stage[1]) >= done if stage else re.split(r"[.\[]", key)[0] in sections

    return all(concerns_the_future(key) for key in different)


def differing_keys(one: Any, other: Any, path: str = "") -> list[str]:
    """Dotted paths at which two plain structures differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = dict.fromkeys([*one, *other])
        return [
            found for key in keys for found in differing_keys(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            found
            for i, pair in enumerate(zip(one, other, strict=True))
            for found in differing_keys(*pair, f"{path}[{i}]")
        ]
    return [] if one == other else [path]
