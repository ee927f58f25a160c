"""Memory of one micro-batch beside the weights: forward and backward on tensors without storage.

A formula for activations holds for one way of writing one architecture. Here the model, the loss and autograd are
asked themselves: they run on fake tensors, which have a shape and no content, and all that comes and goes is counted.
So dropout, grouped heads, experts, eager attention, checkpointing and autocast count as they are written. For GPT-2 it
comes to the 34 + 5 a T / D bytes a token, channel and layer of Korthikanti et al. 2022 (arXiv 2205.05198, equation 2)
and what autocast keeps in float32 on top.

On a GPU attention and dropout are other kernels than on a CPU: for `cuda` a fused attention is put in (it keeps its
inputs, its output, one number a row, and a mask in the precision of the queries), and dropout one byte an element.

Shape suffixes: B sequences, T tokens, H heads, D width, E teacher width, N predicted tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.initialization import no_init_weights

from lifelong.errors import InputError
from lifelong.lm import chunk as head_tiles
from lifelong.lm.head import head_settings, instance_forward
from lifelong.lm.loss import CHUNK_ELEMENTS, OnlineTarget, ki_loss_parts
from lifelong.lm.objective import objective_of
from lifelong.methods._make import make_methods

ACTIVATIONS, HEAD = "activations", "head"


@dataclass(frozen=True)
class StepSettings:
    """Settings that the memory of a micro-batch depends on beside the model.

    Args:
        objective: clm or mlm.
        rows: B, sequences of a micro-batch on one device.
        length: T.
        device: cpu or cuda.
        bf16: autocast.
        weights: precision of the weights; those of a frozen base in four bits as it computes.
        adapter: name and settings of the method that adds parameters and freezes the others, as sorted pairs.
        checkpointing: activations of a layer are computed again in backward.
        checkpointing_kwargs: of TrainingArguments, as sorted pairs.
        teacher_width: E of an online teacher; None where none runs.
    """

    objective: str
    rows: int
    length: int
    device: str = "cpu"
    bf16: bool = False
    checkpointing: bool = False
    checkpointing_kwargs: tuple[tuple[str, Any], ...] = ()
    teacher_width: int | None = None
    weights: str = "float32"
    adapter: tuple[tuple[str, Any], ...] | None = None

    @property
    def predicted(self) -> int:
        """N, tokens that a micro-batch predicts."""
        return objective_of(self.objective).num_predicted(self.rows, self.length)


@dataclass(frozen=True)
class Moment:
    """Bytes at one moment of a step: gradients of parameters, and what else is there by its kind."""

    gradients: int
    activations: int
    head: int

    @property
    def others(self) -> int:
        """Activations and head."""
        return self.activations + self.head


@dataclass(frozen=True)
class StepMemory:
    """Peaks of a micro-batch: for every amount of gradients held, the moment at which most else is held.

    `kept` are bytes that are there when forward is done, `gradients` those of all parameters.
    """

    moments: tuple[Moment, ...]
    kept: int
    gradients: int

    def peak(self, gradient_share: float = 1.0, *, accumulated: bool = False) -> Moment:
        """The most that is there at a time.

        Args:
            gradient_share: of each gradient, what this device keeps once it is computed.
            accumulated: gradients of earlier micro-batches are there from the beginning on.
        """
        if accumulated:
            most = max(self.moments, key=lambda moment: moment.others)
            return Moment(int(self.gradients * gradient_share), most.activations, most.head)
        shared = (
            Moment(int(moment.gradients * gradient_share), moment.activations, moment.head) for moment in self.moments
        )
        return max(shared, key=lambda moment: moment.gradients + moment.others)


def step_memory(config: Any, settings: StepSettings) -> StepMemory:
    """Memory of one micro-batch of a model of this configuration.

    Raises:
        InputError: the model cannot run on tensors without content.
    """
    return _traced(config.to_json_string(use_diff=False), getattr(config, "_attn_implementation", None), settings)


@lru_cache(maxsize=64)
def _traced(config_json: str, attention: str | None, settings: StepSettings) -> StepMemory:
    import json

    values = json.loads(config_json)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    config._attn_implementation = attention
    try:
        return _trace(config, settings)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"model_type {config.model_type!r}: its memory cannot be planned ({reason})") from error


def _trace(config: Any, settings: StepSettings) -> StepMemory:
    with FakeTensorMode(allow_non_fake_inputs=True), contextlib.ExitStack() as modes, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modes.enter_context(no_init_weights())
        kind, dtype = objective_of(settings.objective).auto_class, getattr(torch, settings.weights)
        model = kind.from_config(copy.deepcopy(config), dtype=dtype).train()
        model.tie_weights()  # which is left out where weights are not initialised
        if settings.adapter is not None:
            with patch.object(nn.Module, "to", lambda layer, *_, **__: layer):  # fake tensors cannot be swapped
                adapter_of(settings.adapter).attach(model)
        if settings.checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=dict(settings.checkpointing_kwargs) or None
            )
        live = _Live(model)
        batch = _batch(config, settings)
        teacher = _teacher(model, settings)
        if settings.device == "cuda":
            # by name and not by a mode of torch functions: backward computes checkpointed layers again without modes
            modes.enter_context(patch.object(nn.functional, "dropout", _fused_dropout))
            modes.enter_context(patch.object(nn.functional, "scaled_dot_product_attention", _fused_attention))
        for owner, name in ((nn.functional, "grouped_mm"), (torch, "_grouped_mm")):
            if hasattr(owner, name):  # since torch 2.14 a grouped product of float32 tensors without storage is refused
                modes.enter_context(patch.object(owner, name, _grouped_product))
        modes.enter_context(patch.object(head_tiles, "TILE_ELEMENTS", _tile_elements(settings.device)))
        modes.enter_context(_counting_head(model, settings, teacher, live))
        modes.enter_context(live)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bf16):
            model(**batch)
        kept = live.others
        # a number that is known, as in training: the head looks at it
        live.losses.pop().backward(torch.tensor(1.0))  # type: ignore[no-untyped-call]
        return StepMemory(tuple(live.moments.values()), kept, sum(p.numel() * p.element_size() for p in live.trained))


def adapter_of(settings: tuple[tuple[str, Any], ...]) -> Any:
    """The method of these settings, its base as the model is made."""
    values: dict[str, Any] = {key: list(value) if isinstance(value, tuple) else value for key, value in settings}
    (method,) = make_methods([(str(values.pop("name")), {**values, "base": "same"})])
    return method


def _tile_elements(device: str) -> int:
    """Elements that the head works on at a time: the whole chunk on an accelerator, a few MB on the CPU."""
    return CHUNK_ELEMENTS["cpu"] // 4 if device == "cpu" else 1 << 62


def _batch(config: Any, settings: StepSettings) -> dict[str, Any]:
    shape = (settings.rows, settings.length)
    ids_BT = torch.zeros(shape, dtype=torch.long)
    objective = objective_of(settings.objective)
    kind = torch.bool if objective.is_causal and config._attn_implementation != "eager" else torch.float32
    return {
        "input_ids": ids_BT,
        "position_ids": torch.arange(settings.length).repeat(settings.rows, 1),
        "attention_mask": torch.zeros((shape[0], 1, shape[1], shape[1]), dtype=kind),
        **objective.forward_arguments,
    }


def _teacher(model: Any, settings: StepSettings) -> OnlineTarget | None:
    if settings.teacher_width is None:
        return None
    rows = head_settings(model)["weight_VD"].shape[0]
    return OnlineTarget(
        torch.empty(settings.predicted, settings.teacher_width, dtype=model.dtype),
        torch.empty(rows, settings.teacher_width, dtype=model.dtype),
    )


@contextlib.contextmanager
def _counting_head(model: Any, settings: StepSettings, teacher: OnlineTarget | None, live: _Live) -> Iterator[None]:
    """The loss on the rows that are predicted, whichever they are: fake tensors cannot say."""
    labels_N = torch.zeros(settings.predicted, dtype=torch.long)
    chunk = CHUNK_ELEMENTS[settings.device]

    def forward(hidden_BTD: Tensor) -> Tensor:
        given = head_settings(model)
        weight_VD = given.pop("weight_VD")
        with live.counting_as(HEAD):
            hidden_ND = _Predicted.apply(hidden_BTD, settings.predicted)
            with patch.object(Tensor, "all", _known_all):
                loss, _, _ = ki_loss_parts(
                    hidden_ND, weight_VD, labels_N, targets=(teacher,) if teacher is not None else (),
                    alpha=0.5 if teacher is not None else 0.0, temperature=2.0, num_items=1,
                    chunk_tokens=max(64, chunk // weight_VD.shape[0]), **given,
                )  # fmt: skip
        live.losses.append(loss)
        return hidden_BTD[..., :0]

    with instance_forward(model.get_output_embeddings(), forward):
        yield


def _known_all(_: Tensor) -> bool:
    """Every label is predicted: the rows that are not were left out before."""
    return True


class _Predicted(torch.autograd.Function):
    """Rows of the predicted tokens, as indexing gives them: a copy, and a gradient that is zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, hidden_BTD: Tensor, predicted: int) -> Tensor:
        ctx.shape = hidden_BTD.shape
        ctx.places = torch.empty(predicted, 2, dtype=torch.long)
        return hidden_BTD.new_empty(predicted, hidden_BTD.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].new_zeros(ctx.shape), None


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensors that are alive and were made while this is on, by kind."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.moments: dict[int, Moment] = {}
        self.losses: list[Tensor] = []
        self._kind = ACTIVATIONS
        self._bytes = {ACTIVATIONS: 0, HEAD: 0}
        self._gradients = 0
        self._known: dict[int, tuple[str, int]] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            self._known[tensor.untyped_storage()._cdata] = ("", 0)
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(self._is_gradient)  # type: ignore[no-untyped-call]

    @property
    def others(self) -> int:
        """Bytes now, gradients of parameters left out."""
        return sum(self._bytes.values())

    @contextlib.contextmanager
    def counting_as(self, kind: str) -> Iterator[None]:
        """Count tensors that are made now as this kind."""
        before, self._kind = self._kind, kind
        yield
        self._kind = before

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it has made."""
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = (self._kind, size)
        self._bytes[self._kind] += size
        weakref.finalize(storage, self._free, key)
        most = self.moments.get(self._gradients)
        if most is None or self.others > most.others:
            self.moments[self._gradients] = Moment(self._gradients, self._bytes[ACTIVATIONS], self._bytes[HEAD])

    def _free(self, key: int) -> None:
        kind, size = self._known.pop(key)
        if kind:
            self._bytes[kind] -= size

    def _is_gradient(self, parameter: Tensor) -> None:
        """A tensor has become the gradient of a parameter and stays until the optimizer has stepped."""
        assert parameter.grad is not None, "asked after it was accumulated"
        key = parameter.grad.untyped_storage()._cdata
        kind, size = self._known[key]
        if kind:
            self._bytes[kind] -= size
            self._gradients += size
            self._known[key] = ("", 0)


def _grouped_product(rows: Tensor, weight: Tensor, *, offs: Tensor, **_: Any) -> Tensor:
    """`[N,D]` by `[G,D,F]`, a matrix for each group of rows, `[N,F]`: experts on the tokens that were sent to them."""
    product: Tensor = _GroupedProduct.apply(rows, weight, offs)
    return product


class _GroupedProduct(torch.autograd.Function):
    """The tensors of a grouped product, without its numbers: it keeps its two factors."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
        del offs
        ctx.save_for_backward(rows, weight)
        return rows.new_empty(rows.shape[0], weight.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        del gradients
        rows, weight = ctx.saved_tensors
        return torch.empty_like(rows), torch.empty_like(weight), None


def _fused_dropout(tensor: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """One byte an element is kept."""
    del inplace
    return torch.native_dropout(tensor, p, True)[0] if training and p > 0 else tensor


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    """Attention whose softmax is not kept."""
    attended: Tensor = _FusedAttention.apply(query, key, value, attn_mask)
    return attended


class _FusedAttention(torch.autograd.Function):
    """The tensors of a fused attention, without its numbers.

    Source: Dao 2023 (arXiv 2307.08691), algorithms 1 and 2: the softmax is kept as one log-sum a row.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        low = torch.bfloat16 if torch.is_autocast_enabled("cpu") else query.dtype
        query, key, value = (tensor.to(low) for tensor in (query, key, value))
        output = torch.empty_like(query)
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sums, None if mask is None else mask.to(low))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        del gradients
        query, key, value = ctx.saved_tensors[:3]
        accumulated = torch.empty_like(query, dtype=torch.float32)
        return torch.empty_like(accumulated, dtype=query.dtype), torch.empty_like(key), torch.empty_like(value), None


__all__ = ["Moment", "StepMemory", "StepSettings", "step_memory"]
