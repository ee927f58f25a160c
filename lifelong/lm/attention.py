"""Attention one document at a time, where a row of packed documents would pay for the square of its whole length.

Between documents nothing is to be seen, so that of a row's `T x T` pairs only the squares along the diagonal count:
25 % at 1,024 tokens and 17 % at 2,048 in the corpora that were measured. One call of PyTorch's attention per document
needs no mask at all, where the mask of a packed row needs `B x T x T` numbers and rules out the fast causal kernel.

Shape suffixes: B sequences, H heads, T tokens, E width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

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


AttentionInterface.register(BY_DOCUMENT, attend_by_document)
AttentionMaskInterface.register(BY_DOCUMENT, sdpa_mask)
