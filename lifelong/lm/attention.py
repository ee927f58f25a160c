"""Attention one document at a time, where a row of packed documents would pay for the square of its whole length.

Between documents nothing is to be seen, so that of a row's `T x T` pairs only the squares along the diagonal count:
25 % at 1,024 tokens and 17 % at 2,048 in the corpora that were measured. One call of PyTorch's attention per document
needs no mask at all, where the mask of a packed row needs `B x T x T` numbers and rules out the fast causal kernel.

Shape suffixes: B sequences, H heads, T tokens, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

BY_DOCUMENT = "sdpa_by_document"
"""Its name among the attentions of transformers; other masks than those of `document_mask` mean SDPA as ever."""


def document_mask(segment_ids_BT: Tensor, window: int | None = None) -> Tensor:
    """What `attend_by_document` needs in place of a mask: segments and the window, `[B, 1, 2, T]` whole numbers.

    It has the four dimensions of a ready mask, which models hand on to their layers as it is.

    Args:
        segment_ids_BT: number of the segment of each token.
        window: as in `block_mask`.
    """
    return torch.stack([segment_ids_BT, torch.full_like(segment_ids_BT, window or 0)], 1)[:, None].to(torch.int32)


def attend_by_document(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: query, key, value `[B, H, T, E]` to `[B, T, H, E]`."""
    if attention_mask is None or attention_mask.dtype != torch.int32:
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return found
    causal = settings.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    window = int(attention_mask[0, 0, 1, 0])
    rows = []
    for segments_T, *parts in zip(attention_mask[:, 0, 0], query, key, value, strict=True):
        lengths = torch.unique_consecutive(segments_T, return_counts=True)[1].tolist()
        documents = zip(*(part.split(lengths, dim=1) for part in parts), strict=True)
        rows.append(
            torch.cat(
                [
                    sdpa_attention_forward(
                        module, *(one[None] for one in document), _window_mask(size, window, causal, query), **settings
                    )[0]
                    for size, document in zip(lengths, documents, strict=True)
                ],
                dim=1,
            )
        )
    return torch.cat(rows), None


def _window_mask(length: int, window: int, causal: bool, like: Tensor) -> Tensor | None:
    """What a document sees of itself, `[1, 1, t, t]`; None where that is all of it, or all that came before."""
    if not window or length <= window:
        return None
    place = torch.arange(length, device=like.device)
    back = place[:, None] - place[None, :]
    return ((back >= 0) & (back < window) if causal else back.abs() <= window)[None, None]


Attention = Literal["auto", "sdpa", "flash", "flex"]


def flash_attention() -> str | None:
    """The newest FlashAttention that is installed and has a GPU to run on."""
    if is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else None


def check_attention(asked: Attention, model: Any, *, half: bool, causal: bool) -> Iterator[str]:
    """Why a model cannot be trained with the attention that is asked for, and what would work.

    Args:
        asked: of the recipe.
        model: of the architecture; needs no weights.
        half: trained in bfloat16 or float16.
        causal: sees what came before alone.
    """
    where, instead = f"model.attn_implementation: {asked}", "auto and sdpa train it here"
    name = type(model).__name__
    if asked == "flash":
        if flash_attention() is None:
            yield f"{where} needs a CUDA GPU and the package flash-attn (pip install flash-attn); {instead}"
        if not model._supports_flash_attn:
            yield f"{where}: {name} has no form of it in transformers; {instead}"
        if not half:
            yield f"{where} computes in half precision alone: add `train: {{bf16: true}}`, or leave it out; {instead}"
    elif asked == "flex":
        if not torch.cuda.is_available():
            yield f"{where} has gradients on a GPU alone; {instead}"
        if not model._supports_flex_attn:
            yield f"{where}: {name} has no form of it in transformers; {instead}"
        if not causal:
            yield f"{where} keeps packed documents apart in causal models alone; {instead}"


@contextmanager
def training_attention(model: Any, asked: Attention, *, half: bool) -> Iterator[None]:
    """The attention of a model while it trains: `auto` is FlashAttention in half precision where that is installed."""
    before, flash = model.config._attn_implementation, flash_attention()
    if asked == "flash" or (asked == "auto" and half and flash is not None and model._supports_flash_attn):
        model.set_attn_implementation(flash)
    elif asked != "auto":
        model.set_attn_implementation({"sdpa": "sdpa", "flex": "flex_attention"}[asked])
    try:
        yield
    finally:
        if model.config._attn_implementation not in (before, BY_DOCUMENT):
            model.set_attn_implementation(before)


def attend_like(model: Any, other: Any) -> None:
    """Give a teacher the attention that its student trains with, where its architecture has it."""
    chosen = str(other.config._attn_implementation)
    if ("flash" in chosen and model._supports_flash_attn) or ("flex" in chosen and model._supports_flex_attn):
        model.set_attn_implementation(chosen)


AttentionInterface.register(BY_DOCUMENT, attend_by_document)
AttentionMaskInterface.register(BY_DOCUMENT, sdpa_mask)
