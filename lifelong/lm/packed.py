"""Packed rows as a model's own arguments: the one place where documents are masked from each other.

Four ways are known, and which one a model obeys is found out by trying, so that no list of architectures has to be
kept and one that obeys none is refused:

| way | what the model is given |
|---|---|
| positions | restarting positions, no mask, no cache: transformers masks the documents itself |
| mask | the mask itself: block by block, causal or not, narrowed to the window of layers that have one |
| documents | segments in place of the mask, for one call of PyTorch's attention per document: long rows on a CPU |
| flat | all rows as a single one with the bounds of its documents, for FlashAttention |

A bidirectional model always needs the mask. With a cache or an attention mask in the first way, documents leak
into each other without a word, and some causal models (OPT) never look at positions when they make their mask.

Shape suffixes: B sequences, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lifelong.errors import InputError
from lifelong.lm.attention import BY_DOCUMENT, document_mask
from lifelong.lm.batch import on_device, on_host
from lifelong.lm.objective import objective_of

Packing = Literal["positions", "mask", "documents", "flat"]
LEAST_TOKENS = 512
"""Of a row for the way of documents: attention takes 0.45 of its time there, 0.32 at 1,024 and 0.19 at 2,048."""
_LEAK = 1e-4  # of what would pass from document to document if nothing separated them
_SAME = 1e-4  # of the hidden states, between two ways
_SAME_ROUNDED = 0.02  # likewise, where products are of numbers with eight bits
_found: WeakKeyDictionary[nn.Module, dict[str, Packing]] = WeakKeyDictionary()


def packed_inputs(model: Any, batch: Mapping[str, Any], objective: str) -> dict[str, Any]:
    """Arguments of a stock forward for a batch with `input_ids`, `position_ids`, `segment_ids` of `[B, T]`.

    What the model returns has to be read with `unpacked`.

    Raises:
        InputError: the model cannot be kept from seeing one packed document from another.
    """
    return _inputs(model, batch, objective, packing_of(model, objective, batch["input_ids"].shape[1]))


def unpacked(value: Tensor, shape: Sequence[int]) -> Tensor:
    """Hidden states or logits as `[B, T, D]` for a batch of `shape`, though the model may have seen a single row."""
    return value if len(value) == shape[0] else value.view(*shape, -1)


def packing_of(model: Any, objective: str, tokens: int = 0) -> Packing:
    """Find how packed documents are masked from each other in this model; tried once per model object, on a few tokens.

    Args:
        model: with its attention set.
        objective: clm or mlm.
        tokens: of a row.

    Raises:
        InputError: no way works, so that a recurrent state or an unusual attention would carry one document
            into the next.
    """
    found, attention = _found.setdefault(model, {}), str(model.config._attn_implementation)
    if attention == BY_DOCUMENT:  # set by an earlier look, at this model or at the one that it was copied from
        attention = "sdpa"
    if attention not in found:
        found[attention] = _tried(model, objective, attention)
    if tokens < LEAST_TOKENS or attention != "sdpa" or next(model.parameters()).device.type != "cpu":
        return found[attention]
    if BY_DOCUMENT not in found:
        found[BY_DOCUMENT] = "documents" if _takes_documents(model, objective, found[attention]) else found[attention]
    return found[BY_DOCUMENT]


def _tried(model: Any, objective: str, attention: str) -> Packing:
    ways: tuple[Packing, ...] = ("positions", "mask") if objective_of(objective).is_causal else ("mask",)
    if "flash" in attention:
        ways = ("flat",)
    faults = []
    for way in ways:
        fault = _fault(model, objective, way)
        if fault is None:
            return way
        faults.append(f"{way}: {fault}")
    raise InputError(
        f"model {type(model).__name__} (model_type {model.config.model_type!r}) cannot be trained on packed "
        f"documents with the attention {attention!r}: one would see the other. Tried {'; '.join(faults)}. Choose "
        + (
            "a model whose layers are all attention and that takes position_ids or a four-dimensional attention_mask"
            if attention in ("sdpa", "eager")
            else "`model.attn_implementation: sdpa`"
        )
    )


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
        inputs["attention_mask"] = _by_layer(
            model, lambda window: block_mask(batch["segment_ids"], _dtype(model), causal=kind.is_causal, window=window)
        )
    elif way == "documents":
        inputs["attention_mask"] = _by_layer(model, lambda window: document_mask(batch["segment_ids"], window))
    elif way == "flat":
        starts = document_bounds(on_host(batch, "segment_ids"))
        bounds, longest = on_device(starts, batch["input_ids"]), int(np.diff(starts).max())
        inputs = {name: value.reshape(1, -1) for name, value in inputs.items()}
        inputs |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
    return {**inputs, **kind.forward_arguments}


def document_bounds(segment_ids_BT: NDArray[np.int64]) -> NDArray[np.int32]:
    """Where documents begin in the rows laid end to end, and the end of all: `[documents + 1]`, as `cu_seq_lens`."""
    first_BT = np.ones(segment_ids_BT.shape, dtype=bool)
    first_BT[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    return np.append(np.flatnonzero(first_BT), segment_ids_BT.size).astype(np.int32)


def _by_layer(model: Any, mask: Callable[[int | None], Tensor]) -> Any:
    """One mask, or one for each kind of layer: a ready mask replaces a model's own, its window included."""
    window = getattr(model.config, "sliding_window", None)
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if "sliding_attention" not in kinds:
        return mask(None if kinds else window)
    return {"full_attention": mask(None), "sliding_attention": mask(window)}


def _dtype(model: Any) -> torch.dtype:
    found: torch.dtype = next(model.parameters()).dtype
    return found


def _takes_documents(model: Any, objective: str, way: Packing) -> bool:
    """Whether the model computes document by document what it computes in its own way; if so, it is set to it."""
    kinds = set(getattr(model.config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"} or not model._can_set_attn_implementation():
        return False
    before = model.config._attn_implementation
    batch = _trial_batch(model, apart=True)
    with _evaluating(model):
        known = _hidden(model, _inputs(model, batch, objective, way))
        try:
            model.set_attn_implementation(BY_DOCUMENT)
            found = _hidden(model, _inputs(model, batch, objective, "documents"))
        except _NOT_TAKEN:
            found = torch.full_like(known, torch.inf)
    same = _SAME_ROUNDED if torch.is_autocast_enabled(known.device.type) else _SAME
    if float((known - found).abs().max()) <= same * float(known.abs().max()):
        return True
    model.set_attn_implementation(before)
    return False


_NOT_TAKEN = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError)


def _trial_batch(model: Any, *, apart: bool) -> dict[str, Tensor]:
    """Two rows of eight tokens, one document each or two."""
    device = next(model.parameters()).device
    ids_BT = (torch.arange(3, 19, device=device) * 5 % model.config.vocab_size).view(2, 8)
    row_T = torch.arange(8, device=device)
    segments_T = 1 + row_T // 4 if apart else torch.ones_like(row_T)
    places_T = row_T % 4 if apart else row_T
    return {"input_ids": ids_BT, "position_ids": places_T.repeat(2, 1), "segment_ids": segments_T.repeat(2, 1)}


def _fault(model: Any, objective: str, way: Packing) -> str | None:
    """Why documents are not kept from each other, or None: the same rows with another first document.

    Tried in the form of batch that trains, and in the precision that is set; FlashAttention takes half precision alone.
    """
    device = next(model.parameters()).device.type
    half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if half is None and way == "flat" and _dtype(model) is torch.float32:
        half = torch.bfloat16
    moved = []
    with _evaluating(model), torch.autocast(device, half, enabled=half is not None):
        for apart in (True, False):
            batch = _trial_batch(model, apart=apart)
            other = batch["input_ids"].clone()
            other[:, :4] = (other[:, :4] + 1) % model.config.vocab_size
            try:
                one, two = (
                    unpacked(_hidden(model, _inputs(model, {**batch, "input_ids": ids}, objective, way)), ids.shape)
                    for ids in (batch["input_ids"], other)
                )
            except _NOT_TAKEN as error:
                return f"the model does not take it ({' '.join(str(error).split())[:120]})"
            moved.append(float((one - two)[:, 4:].abs().mean()))
    passed, most = moved
    if not passed <= _LEAK * most:
        return f"{passed / most:.0%} of what would pass between documents still passes" if most else "documents leak"
    return None


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training, device = model.training, next(model.parameters()).device.type
    model.eval()
    try:
        # a trial compares numbers: what rounds them around it is left out, and set anew where a way needs it
        with torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        model.train(training)


def _hidden(model: Any, inputs: dict[str, Any]) -> Tensor:
    """What reaches the output embedding."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        kept.append(given[0])

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        type(model).forward(model, **inputs)
    finally:
        handle.remove()
    return kept[0].double()
