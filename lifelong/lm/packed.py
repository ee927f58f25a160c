"""Packed rows as a model's own arguments: the one place where documents are masked from each other.

Two ways are known, and which one a model obeys is found out by trying, so that no list of architectures has to be
kept and one that obeys neither is refused:

| way | what the model is given |
|---|---|
| positions | restarting positions, no mask, no cache: transformers masks the documents itself, quickly |
| mask | the mask itself: block by block, causal or not, narrowed to the window of layers that have one |

A bidirectional model always needs the mask. With a cache or an attention mask in the first way, documents leak
into each other without a word, and some causal models (OPT) never look at positions when they make their mask.

Shape suffixes: B sequences, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lifelong.errors import InputError
from lifelong.lm.objective import objective_of

Packing = Literal["positions", "mask"]
_LEAST_SEPARATION = 0.1  # of what would pass from document to document if nothing separated them
_found: WeakKeyDictionary[nn.Module, Packing] = WeakKeyDictionary()


def packed_inputs(model: Any, batch: Mapping[str, Any], objective: str) -> dict[str, Any]:
    """Arguments of a stock forward for a batch with `input_ids`, `position_ids`, `segment_ids` of `[B, T]`.

    Raises:
        InputError: the model cannot be kept from seeing one packed document from another.
    """
    return _inputs(model, batch, objective, packing_of(model, objective))


def packing_of(model: Any, objective: str) -> Packing:
    """Find how packed documents are masked from each other in this model; tried once per model object, on a few tokens.

    Raises:
        InputError: neither way works, so that a recurrent state or an unusual attention would carry one document
            into the next.
    """
    if model not in _found:
        ways: tuple[Packing, ...] = ("positions", "mask") if objective_of(objective).is_causal else ("mask",)
        faults = []
        for way in ways:
            fault = _fault(model, objective, way)
            if fault is None:
                _found[model] = way
                break
            faults.append(f"{way}: {fault}")
        else:
            raise InputError(
                f"model {type(model).__name__} (model_type {model.config.model_type!r}) cannot be trained on packed "
                f"documents: one would see the other. Tried {'; '.join(faults)}. Choose a model whose layers are all "
                "attention and that takes position_ids or a four-dimensional attention_mask"
            )
    return _found[model]


def position_offset(model: Any) -> int:
    """The first position of a model: RoBERTa and its kin count on from the padding token, all others from zero.

    Their position embedding tells: it has a row for padding.
    """
    embeddings = getattr(model.base_model, "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def block_mask(
    segment_ids_BT: Tensor, dtype: torch.dtype, *, causal: bool = False, window: int | None = None
) -> Tensor:
    """Additive mask `[B, 1, T, T]`: 0 inside a segment, the lowest number elsewhere.

    Args:
        segment_ids_BT: number of the segment of each token.
        dtype: of the model.
        causal: nothing later is seen.
        window: farthest distance that is seen, the token itself being at 0; bidirectional models count the
            farthest one in, causal ones do not, as in transformers.
    """
    seen = segment_ids_BT[:, None, :, None] == segment_ids_BT[:, None, None, :]
    place_T = torch.arange(segment_ids_BT.shape[1], device=segment_ids_BT.device)
    back_TT = place_T[:, None] - place_T[None, :]
    if causal:
        seen = seen & (back_TT >= 0)
    if window is not None:
        seen = seen & (back_TT < window if causal else back_TT.abs() <= window)
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


def _inputs(model: Any, batch: Mapping[str, Any], objective: str, way: Packing) -> dict[str, Any]:
    kind = objective_of(objective)
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"] + position_offset(model)}
    if way == "mask":
        inputs["attention_mask"] = _masks(model, batch["segment_ids"], causal=kind.is_causal)
    return {**inputs, **kind.forward_arguments}


def _masks(model: Any, segment_ids_BT: Tensor, *, causal: bool) -> Any:
    """One mask, or one for each kind of layer: a ready mask replaces a model's own, its window included."""
    dtype = next(model.parameters()).dtype
    window = getattr(model.config, "sliding_window", None)
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if "sliding_attention" not in kinds:
        return block_mask(segment_ids_BT, dtype, causal=causal, window=None if kinds else window)
    return {
        "full_attention": block_mask(segment_ids_BT, dtype, causal=causal),
        "sliding_attention": block_mask(segment_ids_BT, dtype, causal=causal, window=window),
    }


@torch.no_grad()
def _fault(model: Any, objective: str, way: Packing) -> str | None:
    """Why documents are not kept from each other, or None: two rows that differ in their first document only."""
    device = next(model.parameters()).device
    ids_BT = (torch.arange(3, 11, device=device) * 5 % model.config.vocab_size).repeat(2, 1)
    ids_BT[1, :4] = (ids_BT[1, :4] + 1) % model.config.vocab_size
    row_T = torch.arange(8, device=device)
    together = {"position_ids": row_T.repeat(2, 1), "segment_ids": torch.ones_like(ids_BT)}
    apart = {"position_ids": (row_T % 4).repeat(2, 1), "segment_ids": (1 + row_T // 4).repeat(2, 1)}
    training = model.training
    model.eval()
    try:
        passed, most = (
            _difference(model, _inputs(model, {"input_ids": ids_BT, **places}, objective, way), slice(4, None))
            for places in (apart, together)
        )
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        return f"the model does not take it ({' '.join(str(error).split())[:120]})"
    finally:
        model.train(training)
    if passed > _LEAST_SEPARATION * most:
        return f"{passed / most:.0%} of what would pass between documents still passes" if most else "documents leak"
    return None


def _difference(model: Any, inputs: dict[str, Any], places: slice) -> float:
    """Mean difference of the two rows in what reaches the output embedding at these places."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        kept.append(given[0])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        type(model).forward(model, **inputs)
    finally:
        handle.remove()
    hidden_BTD = kept[0].double()
    return float((hidden_BTD[0, places] - hidden_BTD[1, places]).abs().mean())
