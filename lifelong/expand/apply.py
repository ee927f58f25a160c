"""Apply a plan to weights: one linear map per tensor, made of the maps of its axes."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lifelong.errors import ExpansionError
from lifelong.expand.family import TensorRole, load_family
from lifelong.expand.plan import ExpansionPlan, layer_sources, plan_expansion
from lifelong.expand.verify import verify
from lifelong.expand.width import AxisMap, elle_maps, exact_maps
from lifelong.records import ExpansionReport

ELLE_NOISE = 0.01
INSERTED_OUTPUTS = ("heads.out", "ffn.out")


@dataclass(frozen=True)
class ExpansionMap:
    """The linear map from every old tensor to its grown one; new entries are drawn from `seed`.

    Attributes:
        family: name of the family table that gives every parameter its roles.
        axes: map of every axis.
        layers: for every grown layer the old layer it comes from, and whether it was inserted.
        init_std: standard deviation of new random entries.
        noise_std: standard deviation of the noise on copies (ELLE).
        seed: of new entries.
    """

    family: str
    axes: Mapping[str, AxisMap]
    layers: tuple[tuple[int, bool], ...]
    init_std: float
    noise_std: float
    seed: int

    def apply(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Grown tensors by parameter name.

        Raises:
            ExpansionError: a parameter without exactly one role, or a weight that is not finite.
        """
        family = load_family(self.family)
        generator = torch.Generator().manual_seed(self.seed)
        by_layer: dict[int, list[tuple[str, TensorRole]]] = {}
        grown: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            role, layer = family.role_of(name)
            if not bool(torch.isfinite(tensor).all()):
                raise ExpansionError(
                    f"parameter {name!r} holds values that are not finite; repair the checkpoint first"
                )
            if layer is None:
                grown[name] = self._grow(tensor, role, generator)
            else:
                by_layer.setdefault(layer, []).append((name, role))
        for new, (old, inserted) in enumerate(self.layers):
            for name, role in by_layer[old]:
                tensor = self._grow(weights[name], role, generator)
                if inserted and self.noise_std == 0 and role.columns in INSERTED_OUTPUTS:
                    tensor.zero_()  # one factor of each branch is zero: identity now, alive from the first step
                grown[name.replace(f".{old}.", f".{new}.", 1)] = tensor
        return grown

    def _grow(self, tensor: Tensor, role: TensorRole, generator: torch.Generator) -> Tensor:
        """Gather old entries, scale them, fill new ones. In float64 until the last step."""
        names = [role.rows] if role.columns is None else [role.rows, role.columns]
        value = tensor.double()
        shape = [len(self.axes[name.split(".")[0]].source) for name in names]
        is_new, is_zero, is_one = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        is_copy = torch.zeros(shape, dtype=torch.bool)
        for dim, name in enumerate(names):
            axis_name, part = name.split(".")
            axis = self.axes[axis_name]
            value = value.index_select(dim, axis.source.clamp(min=0))
            along = [1] * len(names)
            along[dim] = -1
            factor = axis.factors.get(part, 1.0)
            value = value * (factor.view(along) if isinstance(factor, Tensor) else factor)
            new = axis.is_new.view(along)
            is_new = is_new | new
            is_zero = is_zero | (new & (axis.fill.get(part) == "zero"))
            is_one = is_one | (new & (axis.fill.get(part) == "one"))
            if self.noise_std:
                is_copy = is_copy | axis.is_copy.view(along)
        if bool(is_new.any()):
            # biases and gains start at their neutral value, matrices at the model's own initial scale
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64) * self.init_std
            fresh = drawn if len(shape) == 2 else torch.zeros(shape, dtype=torch.float64)
            value = torch.where(is_new, fresh, value)
            value = torch.where(is_zero, 0.0, value)
            value = torch.where(is_one, 1.0, value)
        if self.noise_std and bool(is_copy.any()):
            noise = torch.randn(shape, generator=generator, dtype=torch.float64) * self.noise_std
            value = torch.where(is_copy, value + noise, value)
        return value.to(tensor.dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "family": self.family,
            "axes": {name: axis.to_json() for name, axis in self.axes.items()},
            "layers": [list(entry) for entry in self.layers],
            "init_std": self.init_std,
            "noise_std": self.noise_std,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExpansionMap:
        """Inverse of `to_json`."""
        axes = {name: AxisMap.from_json(axis) for name, axis in data["axes"].items()}
        layers = tuple((int(old), bool(inserted)) for old, inserted in data["layers"])
        return cls(data["family"], axes, layers, data["init_std"], data["noise_std"], data["seed"])


def expansion_map(plan: ExpansionPlan, *, tied: bool, init_std: float, seed: int) -> ExpansionMap:
    """The map of a plan; ELLE copies randomly chosen layers right behind themselves, exact growth spreads them."""
    source, target = plan.source, plan.target
    if plan.mode == "exact":
        layers = layer_sources(source["layers"], target["layers"])
        return ExpansionMap(plan.family.name, exact_maps(source, target, tied=tied), tuple(layers), init_std, 0.0, seed)
    generator = torch.Generator().manual_seed(seed)
    copies = torch.bincount(
        torch.randint(0, source["layers"], (target["layers"] - source["layers"],), generator=generator),
        minlength=source["layers"],
    ).tolist()
    layers = [entry for old in range(source["layers"]) for entry in [(old, False), *[(old, True)] * copies[old]]]
    axes = elle_maps(source, target, generator)
    return ExpansionMap(plan.family.name, axes, tuple(layers), init_std, ELLE_NOISE, seed)


def grow(model: Any, plan: ExpansionPlan, *, seed: int = 0) -> tuple[Any, ExpansionMap, ExpansionReport]:
    """Grow `model`, which stays as it is, and verify the result.

    Returns:
        A stock model of the plan's shape, the map of its weights, and what was measured on both.

    Raises:
        ExpansionError: the checkpoint is no plain member of its family, or holds values that are not finite.
    """
    started = time.monotonic()
    config = model.config
    tied = bool(getattr(config, "tie_word_embeddings", False))
    mapping = expansion_map(plan, tied=tied, init_std=float(getattr(config, "initializer_range", 0.02)), seed=seed)
    weights = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    grown = _fresh(type(model), plan.target_config, next(model.parameters()).dtype)
    _load(grown, mapping.apply(weights))
    grown.generation_config = model.generation_config
    # the map is judged without the rounding of its weights to their storage type
    exact = copy.deepcopy(grown).double()
    _load(exact, mapping.apply({name: weight.double() for name, weight in weights.items()}))
    report = verify(model, grown, exact, plan)
    grown = grown.to(next(model.parameters()).device).train(model.training)
    return grown, mapping, replace(report, seconds=time.monotonic() - started)


def _fresh(model_class: Any, config: Any, dtype: torch.dtype) -> Any:
    """A model whose weights are about to be overwritten; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        return model_class(config).to(dtype)


def _load(model: Any, weights: Mapping[str, Tensor]) -> None:
    expected = {name for name, _ in model.named_parameters()}
    if wrong := sorted(set(weights) ^ expected):
        raise ExpansionError(f"the grown model and the map disagree about {', '.join(wrong[:5])}")
    model.load_state_dict(weights, strict=False)
    model.tie_weights()


def expand_model(
    model: Any,
    *,
    layers: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    vocab_size: int | None = None,
    mode: str = "exact",
    seed: int = 0,
) -> tuple[Any, ExpansionReport]:
    """Grow a model and verify the result; `model` itself is left as it is.

    Args:
        model: a stock transformers model of a supported family.
        layers: layers after growth; as for all sizes, what is not named stays.
        hidden_size: width of the residual stream.
        intermediate_size: neurons of a feed-forward layer.
        heads: query heads.
        kv_heads: key-value heads.
        head_dim: channels of a head.
        vocab_size: rows of the embedding.
        mode: `exact`, or `elle` for the random copies of the ELLE paper.
        seed: of new entries.

    Returns:
        A stock model of the same class, and what was measured on both.

    Raises:
        ExpansionError: the target cannot be reached.
    """
    plan = plan_expansion(
        model.config, mode=mode, layers=layers, hidden_size=hidden_size, intermediate_size=intermediate_size,
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, vocab_size=vocab_size,
    )  # fmt: skip
    grown, _, report = grow(model, plan, seed=seed)
    return grown, report
