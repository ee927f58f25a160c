"""Packing: documents one behind the other into blocks of tokens, nothing dropped, nothing repeated.

A document that does not fit is cut, and its rest opens the next block as a segment of its own. Only the very
last block of a store may be shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from lifelong.stream.blocks import Block, BlockStore, BlockWriter, write_blocks
from lifelong.stream.collator import Collator

__all__ = ["Block", "BlockStore", "BlockWriter", "Collator", "Packer", "pack", "write_blocks"]


class Packer:
    """Fills one block at a time and hands every full one to `emit`."""

    def __init__(self, sequence_length: int, emit: Callable[[Block], None]) -> None:
        self.sequence_length = sequence_length
        self._emit = emit
        self._clear()

    def _clear(self) -> None:
        self._ids = np.empty(self.sequence_length, dtype=np.int32)
        self._filled = 0
        self._starts: list[int] = []
        self._offsets: list[int] = []

    def add(self, document: NDArray[np.integer]) -> None:
        """Appends the tokens of one document."""
        done = 0
        while done < len(document):
            taken = min(self.sequence_length - self._filled, len(document) - done)
            self._starts.append(self._filled)
            self._offsets.append(done)
            self._ids[self._filled : self._filled + taken] = document[done : done + taken]
            self._filled += taken
            done += taken
            if self._filled == self.sequence_length:
                self.finish()

    def finish(self) -> None:
        """Hands out what is left, as a shorter block."""
        if self._filled:
            starts, offsets = np.array(self._starts, np.int32), np.array(self._offsets, np.int32)
            self._emit(Block(self._ids[: self._filled], starts, offsets))
            self._clear()


def pack(documents: Iterable[NDArray[np.integer]], sequence_length: int) -> Iterator[Block]:
    """Blocks of the documents, in order."""
    ready: list[Block] = []
    packer = Packer(sequence_length, ready.append)
    for document in documents:
        packer.add(document)
        yield from ready
        ready.clear()
    packer.finish()
    yield from ready
