"""Several domains trained on together: the upper bound that a stream is measured against."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from lifelong.stream.blocks import Block


class Corpus(Protocol):
    """Blocks of one domain."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of what the blocks were made from."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Block: ...


class JointBlocks:
    """Blocks of several domains in equal parts: an epoch is the longest of them, shorter ones come again.

    Args:
        corpora: of the domains.
        domains: their names, where they are known.
    """

    def __init__(self, corpora: Sequence[Corpus], domains: Sequence[str] = ()) -> None:
        self.corpora, self.domains = list(corpora), tuple(domains)
        named = "+".join(corpus.fingerprint for corpus in corpora)
        self.fingerprint = hashlib.sha256(named.encode()).hexdigest()

    def __len__(self) -> int:
        return max(len(corpus) for corpus in self.corpora) * len(self.corpora)

    def __getitem__(self, index: int, /) -> Block:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        place, which = divmod(index, len(self.corpora))
        corpus = self.corpora[which]
        return corpus[place % len(corpus)]


def domain_of(corpus: object, row: int, domain: str) -> str:
    """Whose block a row of a stage's corpus is; `domain` is the stage's own."""
    if isinstance(corpus, JointBlocks) and corpus.domains:
        return corpus.domains[row % len(corpus.corpora)]
    return domain
