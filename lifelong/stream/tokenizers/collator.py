"""Batches of domains that are read by tokenizers of their own.

Shape suffixes: T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from lifelong.lm.objective import objective_of
from lifelong.stream.blocks import Block
from lifelong.stream.collator import IGNORED, Collator, PackedRow
from lifelong.stream.tokenizers.merged import DomainTokenizer


@dataclass(frozen=True)
class DomainCollator(Collator):
    """A collator that masks the text of a domain as its own tokenizer would: in its ids, with its tokens.

    So a masked teacher meets no token that it does not know, and a cache that was written without the union knows the
    masks.

    Args:
        own: by `domain_id`, what reads the domain; the union reads the others.
    """

    own: Mapping[int, DomainTokenizer] = field(default_factory=dict)

    @classmethod
    def of(cls, plain: Collator, domains: Mapping[str, DomainTokenizer], columns: Sequence[str]) -> DomainCollator:
        """A collator with the settings of `plain`; `columns` are the names behind the domain ids."""
        settings = {item.name: getattr(plain, item.name) for item in fields(Collator)}
        return cls(**settings, own={number: domains[name] for number, name in enumerate(columns) if name in domains})

    def _inputs_and_labels(self, row: PackedRow) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        domain = self.own.get(row["domain_id"])
        if domain is None or not objective_of(self.objective).masks_tokens:
            return super()._inputs_and_labels(row)
        settings = {item.name: getattr(self, item.name) for item in fields(Collator)}
        never = (*domain.special_ids, *np.flatnonzero(domain.ids_V < 0).tolist())  # nor what has no place
        theirs = replace(Collator(**settings), mask_id=domain.mask_id, vocab_size=len(domain.ids_V), special_ids=never)
        block = row["block"]
        ids = domain.own_ids(self.vocab_size)[block.ids]
        own_row: PackedRow = {**row, "block": Block(ids.astype(block.ids.dtype), block.starts, block.offsets)}
        inputs_T, labels_T = theirs._inputs_and_labels(own_row)
        kept = labels_T != IGNORED
        labels_T[kept] = domain.ids_V[labels_T[kept]]
        return domain.ids_V[inputs_T], labels_T
