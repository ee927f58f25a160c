"""The loss inside the model's forward, for every architecture through one mechanism.

What all language models share is the output embedding. While a loss head is installed, the instance's own
`forward` of that module hands its hidden states to the KI loss and returns logits of width zero, and the
model's `forward` returns the loss. Only instance attributes are set: parameter names, `state_dict` and
`save_pretrained` stay as they are, and wrappers (autocast, DDP, FSDP) see an ordinary forward.

Shape suffixes: B sequences, T tokens, N predicted tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.utils import ModelOutput

from lifelong.lm.batch import IGNORED, HostArrays, KnownBatch, on_device, predicted_places, predicted_sequences
from lifelong.lm.loss import Target, ki_loss_parts, token_nats, token_uncertainty
from lifelong.lm.objective import objective_of
from lifelong.lm.packed import packed_inputs, packing_of, unpacked

T = TypeVar("T")

BATCH_ONLY = ("domain_ids", "is_replay")


@dataclass(frozen=True)
class Inheritance:
    """Distillation inputs of one batch: targets for the labelled rows of the sequences with `alpha_B > 0`, in order.

    With `by_uncertainty` the rate of a sequence is `alpha_B` times the student's mean uncertainty about its tokens.
    `is_taught_B` says on the host which rates are above zero; None: all of them.
    """

    targets: Sequence[Target]
    alpha_B: Tensor
    temperature: float
    by_uncertainty: bool = False
    is_taught_B: NDArray[np.bool_] | None = None


@dataclass
class LossOutput(ModelOutput):  # type: ignore[misc]
    """Loss of a batch. `ce`, `kl` (times tau^2) and `rate`, of inheritance, are detached means over predicted tokens.

    `rate` is there only where it follows the student's uncertainty.
    """

    loss: Tensor | None = None
    ce: Tensor | None = None
    kl: Tensor | None = None
    num_tokens: int | None = None
    rate: Tensor | None = None


def head_settings(model: Any) -> dict[str, Any]:
    """Output embedding of a model and what its logits go through afterwards."""
    head, config = model.get_output_embeddings(), model.config
    return {
        "weight_VD": head.weight,
        "bias_V": getattr(head, "bias", None),
        "softcap": getattr(config, "final_logit_softcapping", None),
        # Granite divides its logits, Cohere multiplies them
        "logit_scale": (getattr(config, "logit_scale", None) or 1.0) / getattr(config, "logits_scaling", 1.0),
    }


def predicted_rows(
    hidden_BTD: Tensor, labels_BT: Tensor, objective: str, places: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and labels of the predicted tokens, `[N, D]` and `[N]`, and the sequence of each, `[N]`.

    `places` are those of `predicted_places`, where they are known; otherwise the labels are asked.
    """
    kind = objective_of(objective)
    hidden_BTD, labels_BT = kind.predicting(hidden_BTD), kind.predicted(labels_BT)
    sequence_N, place_N = places or (labels_BT != IGNORED).nonzero(as_tuple=True)
    return hidden_BTD[sequence_N, place_N], labels_BT[sequence_N, place_N], sequence_N


def sequence_means(value_N: Tensor, sequence_N: Tensor, sequences: int) -> Tensor:
    """Mean of the rows of each sequence, `[B]`; 0 for one without any."""
    sums_B = value_N.new_zeros(sequences).index_add_(0, sequence_N, value_N)
    counts_B = value_N.new_zeros(sequences).index_add_(0, sequence_N, torch.ones_like(value_N))
    return sums_B / counts_B.clamp(min=1)


@contextmanager
def instance_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward of one module object, and put back what was there."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


def at_the_head(model: Any, batch: Mapping[str, Any], objective: str, look: Callable[[Tensor], T]) -> T:
    """Apply `look` to the hidden states `[B, T, D]` in place of the output embedding.

    Documents are masked from each other. Inside `look` the output embedding is whole, though its parameters may be
    in parts on several devices before and afterwards.
    """
    seen: list[T] = []

    def head_forward(hidden_BTD: Tensor) -> Tensor:
        seen.append(look(unpacked(hidden_BTD, batch["input_ids"].shape)))
        return hidden_BTD[..., :0].clone()  # no view: FSDP2 hangs hooks on what a module returns

    inputs = packed_inputs(model, batch, objective)
    with instance_forward(model.get_output_embeddings(), head_forward):
        model(**inputs)
    return seen[0]


def hidden_states(model: Any, batch: Mapping[str, Any], objective: str) -> Tensor:
    """Hidden states `[B, T, D]` that the output embedding would be applied to, documents masked from each other."""
    return at_the_head(model, batch, objective, lambda hidden_BTD: hidden_BTD)


@contextmanager
def loss_head(model: Any, objective: str) -> Iterator[None]:
    """While open, `model(**batch, inheritance=, num_items=, on_host=)` returns a `LossOutput` and forms no full logits.

    Without `labels` the model behaves as always.

    Raises:
        InputError: the model cannot be kept from seeing one packed document from another.
    """
    packing_of(model, objective)
    head = model.get_output_embeddings()
    stock_forward, stock_head = model.forward, head.forward
    step: dict[str, Any] = {}

    def head_forward(hidden_BTD: Tensor) -> Tensor:
        if not step:
            logits: Tensor = stock_head(hidden_BTD)
            return logits
        step["result"] = batch_loss(model, unpacked(hidden_BTD, step["labels_BT"].shape), objective, **step)
        return hidden_BTD[..., :0].clone()  # no view: FSDP2 hangs hooks on what a module returns

    def forward(
        *args: Any,
        inheritance: Inheritance | None = None,
        num_items: Any = None,
        on_host: HostArrays | None = None,
        **batch: Any,
    ) -> Any:
        if args or batch.get("labels") is None or "segment_ids" not in batch:
            return stock_forward(*args, **{k: v for k, v in batch.items() if k not in BATCH_ONLY})
        batch = batch if on_host is None else KnownBatch(batch, on_host)
        inputs = packed_inputs(model, batch, objective)  # may try the model on a few tokens: the head is still its own
        step.update(labels_BT=batch["labels"], inheritance=inheritance, num_items=num_items)
        step.update(places=predicted_places(batch, objective), rows=_rows_of_taught(batch, objective, inheritance))
        try:
            outputs = stock_forward(**inputs)
            result = step["result"]
        finally:
            step.clear()
        auxiliary = getattr(outputs, "aux_loss", None)  # balance of a router, where the configuration asks for it
        if isinstance(auxiliary, Tensor):
            share = 1.0 if num_items is None else result.num_tokens / num_items
            result.loss = result.loss + model.config.router_aux_loss_coef * share * auxiliary
        return result

    with instance_forward(head, head_forward), instance_forward(model, forward):
        yield


def _rows_of_taught(
    batch: Mapping[str, Tensor], objective: str, inheritance: Inheritance | None
) -> tuple[Tensor, Tensor] | None:
    """Numbers of the predicted rows of taught sequences, and of the others; None where all are taught or none."""
    if inheritance is None or inheritance.is_taught_B is None:
        return None
    is_taught_N = inheritance.is_taught_B[predicted_sequences(batch, objective)]
    taught, left = (on_device(np.flatnonzero(flags), batch["labels"]) for flags in (is_taught_N, ~is_taught_N))
    return taught, left


def batch_loss(
    model: Any,
    hidden_BTD: Tensor,
    objective: str,
    *,
    labels_BT: Tensor,
    inheritance: Inheritance | None,
    num_items: Any,
    places: tuple[Tensor, Tensor] | None = None,
    rows: tuple[Tensor, Tensor] | None = None,
    result: Any = None,
) -> LossOutput:
    """CE + KI of one batch; rows that nobody teaches do without the teacher's part."""
    del result
    settings = head_settings(model)
    weight = settings.pop("weight_VD")
    hidden_ND, labels_N, sequence_N = predicted_rows(hidden_BTD, labels_BT, objective, places)
    total = labels_N.numel()
    items = max(total, 1) if num_items is None else num_items
    rate = None
    if inheritance is None:
        loss, ce, kl = ki_loss_parts(hidden_ND, weight, labels_N, num_items=items, checked=True, **settings)
    else:
        alpha_N = inheritance.alpha_B[sequence_N]
        taught, left = rows or (slice(None), None)
        if inheritance.by_uncertainty:
            doubt_N = token_uncertainty(hidden_ND[taught], weight, **settings)
            doubt_B = sequence_means(doubt_N, sequence_N[taught], len(inheritance.alpha_B))
            alpha_N = alpha_N * doubt_B[sequence_N]
            rate = alpha_N.sum() / max(total, 1)
        loss, ce, kl = ki_loss_parts(
            hidden_ND[taught], weight, labels_N[taught], targets=tuple(inheritance.targets), alpha=alpha_N[taught],
            temperature=inheritance.temperature, num_items=items, checked=True, **settings,
        )  # fmt: skip
        if left is not None and len(left):
            plain = ki_loss_parts(hidden_ND[left], weight, labels_N[left], num_items=items, checked=True, **settings)
            loss, ce = loss + plain[0], ce + plain[1]
    return LossOutput(loss=loss, ce=ce / max(total, 1), kl=kl / max(total, 1), num_tokens=total, rate=rate)


@torch.no_grad()
def predicted_nats(model: Any, batch: Mapping[str, Any], objective: str) -> Tensor:
    """Nats of every predicted token at the position of the token, `[B, T]` float32; 0 where none is predicted."""

    def nats(hidden_BTD: Tensor) -> Tensor:
        settings = head_settings(model)
        # parameters that are offloaded say `cpu`, where the model computes on an accelerator
        hidden_ND, labels_N, _ = predicted_rows(hidden_BTD, batch["labels"].to(hidden_BTD.device), objective)
        return token_nats(hidden_ND, settings.pop("weight_VD"), labels_N, **settings)

    nats_N = at_the_head(model, batch, objective, nats)
    nats_BT = torch.zeros(batch["labels"].shape, dtype=torch.float32, device=nats_N.device)
    nats_BT[batch["labels"].to(nats_N.device) != IGNORED] = nats_N
    return nats_BT
