"""Packed rows to a model's own arguments: the one place where documents are kept from each other.

A causal model of transformers masks packed documents from each other when positions restart, no cache is
used and no attention mask is given; with either of the last two otherwise, documents leak into each other.
A bidirectional model is handed the block-diagonal mask itself.

Letters: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def packed_inputs(model: Any, batch: Mapping[str, Any], objective: str) -> dict[str, Any]:
    """Arguments of a stock forward for a batch with `input_ids`, `position_ids`, `segment_ids` of `[B, T]`."""
    position_ids = batch["position_ids"] + position_offset(model)
    inputs = {"input_ids": batch["input_ids"], "position_ids": position_ids}
    if objective == "mlm":
        return {**inputs, "attention_mask": block_mask(batch["segment_ids"], next(model.parameters()).dtype)}
    return {**inputs, "use_cache": False}


def position_offset(model: Any) -> int:
    """RoBERTa's first position is `pad_token_id + 1`; every other family counts from zero."""
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
        return int(model.config.pad_token_id) + 1
    return 0


def block_mask(segment_ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask `[B, 1, T, T]`: 0 inside a segment, the lowest number elsewhere."""
    same = segment_ids_BT[:, None, :, None] == segment_ids_BT[:, None, None, :]
    return torch.zeros_like(same, dtype=dtype).masked_fill_(~same, torch.finfo(dtype).min)
