"""Several domains trained on together: the upper bound that a stream is measured against."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np

from lifelong.stream.blocks import Block
from lifelong.stream.shares import period


class Corpus(Protocol):
    """Blocks of one domain."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of what the blocks were made from."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Block: ...


class JointBlocks:
    """Blocks of several domains: an epoch is the longest of them, shorter ones come again.

    Args:
        corpora: of the domains.
        domains: their names, where they are known.
        shares: of the rows; equal parts, one after the other, where not given.
    """

    def __init__(
        self, corpora: Sequence[Corpus], domains: Sequence[str] = (), shares: tuple[Fraction, ...] | None = None
    ) -> None:
        self.corpora, self.domains, self.shares = list(corpora), tuple(domains), shares
        owners = list(range(len(self.corpora))) if shares is None else period(shares)
        self._owners = np.array(owners, np.int16)
        self._counts = np.bincount(self._owners, minlength=len(self.corpora))
        self._before = np.zeros(len(owners), np.int64)
        for which, count in enumerate(self._counts):
            self._before[self._owners == which] = np.arange(count)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of what the blocks were made from."""
        named = "+".join(corpus.fingerprint for corpus in self.corpora)
        return hashlib.sha256((named + ("" if self.shares is None else f" {self.shares}")).encode()).hexdigest()

    def __len__(self) -> int:
        longest = max(-(-len(corpus) // int(n)) for corpus, n in zip(self.corpora, self._counts, strict=True))
        return longest * len(self._owners)

    def __getitem__(self, index: int, /) -> Block:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        which, place = self.owner(index)
        corpus = self.corpora[which]
        return corpus[place % len(corpus)]

    def owner(self, row: int) -> tuple[int, int]:
        """Which domain's a row is, and how many rows of that domain come before it."""
        round_, place = divmod(row, len(self._owners))
        which = int(self._owners[place])
        return which, round_ * int(self._counts[which]) + int(self._before[place])

    def rows_of(self, rows: int) -> dict[str, int]:
        """How many of the first rows are whose, by name."""
        rounds, rest = divmod(rows, len(self._owners))
        begun = np.bincount(self._owners[:rest], minlength=len(self.corpora))
        return {name: int(rounds * n + m) for name, n, m in zip(self.domains, self._counts, begun, strict=True)}


def domain_of(corpus: object, row: int, domain: str) -> str:
    """Whose block a row of a stage's corpus is; `domain` is the stage's own."""
    if isinstance(corpus, JointBlocks) and corpus.domains:
        return corpus.domains[corpus.owner(row)[0]]
    return domain
