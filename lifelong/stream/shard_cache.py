"""The folder of token shards: how much it may hold, and what goes first."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifelong.errors import InputError
from lifelong.stream.cards.domain import parse_size
from lifelong.stream.tokenize import default_cache_dir

DEFAULT_LIMIT = 20 * 10**9
_ABANDONED_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Pruned:
    """Shards and bytes that were kept and removed."""

    kept: int = 0
    kept_bytes: int = 0
    removed: int = 0
    removed_bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def shards_folder(cache_dir: Path | None = None) -> Path:
    """Folder of all shards; of the user's cache where none is named."""
    return (cache_dir if cache_dir is not None else default_cache_dir()) / "shards"


def cache_limit() -> int:
    """`$LIFELONG_CACHE_LIMIT`, else 20 GB.

    Raises:
        InputError: it is no size.
    """
    named = os.environ.get("LIFELONG_CACHE_LIMIT")
    limit = parse_size(named) if named else DEFAULT_LIMIT
    if not isinstance(limit, int):
        raise InputError(f"LIFELONG_CACHE_LIMIT: a size like 20GB, not {named!r}")
    return limit


def prune_shards(folder: Path, limit: int) -> Pruned:
    """Remove the shards that were not used for longest until the others have at most `limit` bytes.

    A process that reads a shard keeps it until it is done; what is needed again is made again.
    """
    found = []
    for shard in folder.glob("*/*"):
        try:
            used = shard.stat().st_mtime
            if shard.is_dir() and not shard.name.startswith("."):
                found.append((used, shard, sum(path.stat().st_size for path in shard.iterdir())))
            elif time.time() - used > _ABANDONED_SECONDS:  # of a process that was killed
                shutil.rmtree(shard, ignore_errors=True) if shard.is_dir() else shard.unlink()
        except FileNotFoundError:
            continue  # another process prunes too
    size, removed, removed_bytes = sum(size for *_, size in found), 0, 0
    for _, shard, own in sorted(found):
        if size - removed_bytes <= limit:
            break
        shutil.rmtree(shard, ignore_errors=True)
        removed, removed_bytes = removed + 1, removed_bytes + own
    return Pruned(len(found) - removed, size - removed_bytes, removed, removed_bytes)
