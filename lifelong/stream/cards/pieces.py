"""A large corpus in pieces of about a megabyte, which can be read in any order.

A piece is a range of bytes of a file, or several small files. What begins in a range is read to its own end, so that
every document belongs to exactly one piece. Nothing but names and sizes has to be known to cut a corpus.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from lifelong.stream.cards.remote import remote_identity, size_of

PIECE_BYTES = 1 << 20
_SAMPLES, _SAMPLE_BYTES = 8, 4096


@dataclass(frozen=True)
class CorpusFile:
    """A file of the training text. `whole`: it can only be read from its beginning, as a compressed one."""

    path: Any
    format: str
    whole: bool


@dataclass(frozen=True)
class FileRange:
    """The documents that begin at bytes `begin <= b < end` of a file; `end` is None where all of them are meant."""

    path: Any
    format: str
    begin: int = 0
    end: int | None = None


class Pieces(Sequence[tuple[FileRange, ...]]):
    """Pieces of files, in the order of the files; any of them is found without listing the others.

    Args:
        files: of the training split.
        piece_bytes: of a piece, at least, where its files are as long.
    """

    def __init__(self, files: Sequence[CorpusFile], piece_bytes: int) -> None:
        self.files = list(files)
        self.sizes = [size_of(file.path) for file in files]
        self._identities: dict[Any, list[Any]] = {}
        self._firsts: list[int] = []
        """Number of the first file of every unit: a long file, which is cut, or small ones together."""
        self._cuts: list[int] = []
        together = 0
        for number, (file, size) in enumerate(zip(self.files, self.sizes, strict=True)):
            if size < piece_bytes and together:
                together += size
            else:
                self._firsts.append(number)
                self._cuts.append(1 if file.whole else max(1, size // piece_bytes))
                together = size
            if together >= piece_bytes:
                together = 0
        self._ends = list(accumulate(self._cuts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"piece {index} of {len(self)}")
        unit = bisect_right(self._ends, index)
        first, cuts = self._firsts[unit], self._cuts[unit]
        if cuts == 1:
            after = self._firsts[unit + 1] if unit + 1 < len(self._firsts) else len(self.files)
            return tuple(FileRange(file.path, file.format) for file in self.files[first:after])
        file, size, place = self.files[first], self.sizes[first], index - (self._ends[unit] - cuts)
        end = None if place + 1 == cuts else size * (place + 1) // cuts
        return (FileRange(file.path, file.format, size * place // cuts, end),)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes)

    def identities(self) -> list[list[Any]]:
        """Name of every file with values that change when its content does, without reading all of it."""
        return [self._identity(file.path) for file in self.files]

    def key(self, index: int) -> str:
        """Hash of what a piece reads: its files with their state on this machine, and the ranges."""
        parts = []
        for part in self[index]:
            state = [str(part.path.resolve()), part.path.stat().st_mtime_ns] if isinstance(part.path, Path) else []
            parts.append([*state, *self._identity(part.path), part.format, part.begin, part.end])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _identity(self, path: Any) -> list[Any]:
        if path not in self._identities:
            self._identities[path] = _identity(path, size_of(path))
        return self._identities[path]


def _identity(path: Any, size: int) -> list[Any]:
    """Size and a hash of samples: a copy in another place has the same."""
    if not isinstance(path, Path):
        return remote_identity(path)
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return [path.name, size, digest.hexdigest()]
