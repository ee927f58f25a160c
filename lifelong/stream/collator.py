"""Collates packed rows into the batch that models are trained on.

Legend: B rows, T tokens (`sequence_length`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from lifelong.errors import InputError
from lifelong.lm.objective import MASK_RATE, objective_of, pad_id
from lifelong.stream.blocks import Block
from lifelong.stream.masking import training_mask
from lifelong.stream.ordering import key_of

if TYPE_CHECKING:
    import torch

IGNORED = -100


class PackedRow(TypedDict):
    """One item of a `StageDataset`. `mask_key` is a function of (seed, epoch, row)."""

    block: Block
    domain_id: int
    is_replay: bool
    mask_key: int


@dataclass(frozen=True)
class Collator:
    """Packed rows to tensors: input_ids, labels, position_ids, segment_ids [B, T], domain_ids, is_replay [B].

    Labels are not shifted: `labels[b, t]` is the token at t, -100 where nothing is predicted. For CLM that is
    the first token of every segment and padding, for MLM everything but the masked positions. Positions
    restart at 0 in every segment; segments count from 1, 0 is padding.

    Args:
        objective: clm or mlm.
        sequence_length: T; shorter rows are padded.
        pad_id: the padding token.
        mask_id: the mask token, needed for MLM.
        vocab_size: number of tokens, needed for MLM.
        special_ids: tokens that are never masked nor drawn as a random replacement.
        seed: of the masks, beside the `mask_key` of each row.
        mask_rate: share of positions that MLM predicts.
        mask_patterns: 0: masks follow `mask_key`, new ones in every epoch. Otherwise a block has this many masks,
            which depend on nothing but the seed and its tokens: those that a cache of targets knows.
    """

    objective: Literal["clm", "mlm"]
    sequence_length: int
    pad_id: int
    mask_id: int | None = None
    vocab_size: int = 0
    special_ids: tuple[int, ...] = ()
    seed: int = 0
    mask_rate: float = MASK_RATE
    mask_patterns: int = 0

    def __post_init__(self) -> None:
        if objective_of(self.objective).masks_tokens and self.mask_id is None:
            raise InputError("objective mlm needs a tokenizer with a mask token; this one has none")

    @classmethod
    def for_tokenizer(
        cls, tokenizer: Any, objective: Literal["clm", "mlm"], sequence_length: int, seed: int = 0
    ) -> Collator:
        """A collator with the special tokens of `tokenizer`; a missing pad token is replaced by its EOS."""
        return cls(
            objective,
            sequence_length,
            pad_id=pad_id(tokenizer),
            mask_id=tokenizer.mask_token_id,
            vocab_size=len(tokenizer),
            special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
            seed=seed,
        )

    def __call__(self, rows: Sequence[PackedRow]) -> dict[str, torch.Tensor]:
        """The batch of `rows`."""
        import torch

        shape = (len(rows), self.sequence_length)
        inputs_BT = np.full(shape, self.pad_id, dtype=np.int64)
        labels_BT = np.full(shape, IGNORED, dtype=np.int64)
        positions_BT = np.zeros(shape, dtype=np.int64)
        segments_BT = np.zeros(shape, dtype=np.int64)
        for b, row in enumerate(rows):
            block = row["block"]
            n = len(block.ids)
            segments_BT[b, :n], positions_BT[b, :n] = segments_and_positions(block)
            inputs_BT[b, :n], labels_BT[b, :n] = self._inputs_and_labels(row)
        arrays = {
            "input_ids": inputs_BT,
            "labels": labels_BT,
            "position_ids": positions_BT,
            "segment_ids": segments_BT,
            "domain_ids": np.array([row["domain_id"] for row in rows], dtype=np.int64),
            "is_replay": np.array([row["is_replay"] for row in rows], dtype=np.bool_),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _inputs_and_labels(self, row: PackedRow) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        block, mask_key = row["block"], row["mask_key"]
        ids = block.ids.astype(np.int64)
        if not objective_of(self.objective).masks_tokens:
            labels = ids.copy()
            labels[block.starts] = IGNORED
            return ids, labels
        assert self.mask_id is not None, "checked when the collator was made"
        special = np.array(self.special_ids, dtype=np.int64)
        replaced, chosen = training_mask(
            ids,
            self._mask_key(block, mask_key),
            mask_id=self.mask_id,
            ordinary_ids=np.setdiff1d(np.arange(self.vocab_size), special),
            protected=np.isin(ids, special),
            rate=self.mask_rate,
        )
        return replaced, np.where(chosen, ids, IGNORED)

    def _mask_key(self, block: Block, mask_key: int) -> int:
        if not self.mask_patterns:
            return key_of(self.seed, mask_key)
        content = hashlib.blake2b(block.ids.tobytes(), digest_size=16).hexdigest()
        return key_of(self.seed, "pattern", mask_key % self.mask_patterns, content)


def segments_and_positions(block: Block) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of the segment, from 1, and position inside it, of every token of a block [n]."""
    n = len(block.ids)
    marks = np.zeros(n, dtype=np.int64)
    marks[block.starts] = 1
    segments = np.cumsum(marks)
    return segments, np.arange(n) - block.starts.astype(np.int64)[segments - 1]
