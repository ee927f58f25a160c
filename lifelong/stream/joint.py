"""Several domains trained on together: the upper bound that a stream is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lifelong.stream.blocks import Block
from lifelong.stream.tokenize import fingerprint_of


class Corpus(Protocol):
    """Blocks of one domain."""

    fingerprint: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Block: ...


class JointBlocks:
    """Blocks of several domains in equal parts: an epoch is the longest of them, shorter ones come again."""

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        self.corpora = list(corpora)
        self.fingerprint = fingerprint_of([corpus.fingerprint for corpus in corpora])

    def __len__(self) -> int:
        return max(len(corpus) for corpus in self.corpora) * len(self.corpora)

    def __getitem__(self, index: int, /) -> Block:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        place, which = divmod(index, len(self.corpora))
        corpus = self.corpora[which]
        return corpus[place % len(corpus)]
