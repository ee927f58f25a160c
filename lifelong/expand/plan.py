"""Planning of a growth: what is feasible, and the configuration of the grown model; loads no weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lifelong.errors import ExpansionError
from lifelong.expand.depth import Layer, Placement, place_layers, random_layers
from lifelong.expand.family import AXES, Family, family_of, load_family
from lifelong.expand.rope import keep_positions, plan_channels
from lifelong.expand.shape import model_shape, obstacles, target_shape
from lifelong.expand.width import Strategy, stream_ratio

EXPECTED = {
    "exact": "float64 below 1e-10, float32 and bfloat16 at their own rounding",
    "approximate": "not preserved; the gap is measured",
    "elle": "not preserved: random copies, as published; the gap is measured",
}


@dataclass(frozen=True)
class ExpansionPlan:
    """A feasible growth.

    Attributes:
        family: of the model to grow.
        target_family: of the result; another one where a dense model becomes a mixture of experts.
        source: sizes before.
        target: sizes after.
        source_config: configuration before.
        target_config: configuration after.
        layers: where every layer of the result comes from.
        channels: `[h']` old channel of every channel of a query or key head, or -1.
        pairs: `[r/2]` place in the new rotary table of every pair of the old one.
        ratio: of the epsilon of norms on the stream to the old one.
        mode: `exact` or `elle`.
        strategy: how new units begin: `pad`, `clone` or `pairs`.
        approximations: why the result is not exact; empty where it is.
        seed: of everything random.
    """

    family: Family
    target_family: Family
    source: Mapping[str, int]
    target: Mapping[str, int]
    source_config: Any
    target_config: Any
    layers: tuple[Layer, ...]
    channels: Tensor
    pairs: Tensor
    ratio: float = 1.0
    mode: str = "exact"
    strategy: Strategy = "pad"
    approximations: tuple[str, ...] = ()
    seed: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether the function must be preserved."""
        return self.mode == "exact" and not self.approximations

    @property
    def tied(self) -> bool:
        """Whether input and output embeddings are tied."""
        return bool(getattr(self.source_config, "tie_word_embeddings", False))

    @property
    def config_changes(self) -> dict[str, tuple[Any, Any]]:
        """Configuration keys whose values differ: before and after."""
        before, after = self.source_config.to_dict(), self.target_config.to_dict()
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        return {key: (before.get(key), after.get(key)) for key in keys if not key.startswith("_")}

    def explain(self) -> str:
        """Feasibility, sizes, configuration differences and expected error, as text."""
        name = self.family.name
        if self.target_family is not self.family:
            name += f" -> {self.target_family.name}"
        lines = [f"family {name}, mode {self.mode}, strategy {self.strategy}"]
        for axis in AXES:
            if axis in self.target:
                before, after = self.source.get(axis), self.target[axis]
                lines.append(
                    f"  {axis:18} " + (f"{before or '-'} -> {after}" if before != after else f"{before} (stays)")
                )
        inserted = [layer.source for layer in self.layers if layer.inserted]
        if inserted:
            lines.append(f"  inserted behind layers {', '.join(map(str, inserted))}")
        for key, (old, new) in self.config_changes.items():
            lines.append(f"  config {key}: {_short(old)} -> {_short(new)}")
        kind = "elle" if self.mode == "elle" else "exact" if self.is_exact else "approximate"
        lines += [f"  not exact: {reason}" for reason in self.approximations]
        return "\n".join([*lines, f"function: {EXPECTED[kind]}"])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 70 else f"{text[:67]}..."


def plan_expansion(
    config: Any,
    *,
    mode: str = "exact",
    strategy: Strategy = "pad",
    approximate: bool = False,
    placement: Placement = "interleaved",
    seed: int = 0,
    **targets: int | None,
) -> ExpansionPlan:
    """Check a growth and build the configuration of its result.

    Args:
        config: configuration of the model to grow.
        mode: `exact`, or `elle` for random copies as published.
        strategy: how new units begin. `pad`: they read at random and write nothing. `clone`: copies that share the
            weight of what they copy. `pairs`: as `pad`, with feed-forward neurons in pairs that cancel.
        approximate: continue where exactness is impossible.
        placement: where layers are inserted: `interleaved`, `last`, or for every one the layer it follows.
        seed: of everything random.
        targets: larger sizes by axis name; what is not named stays.

    Raises:
        ExpansionError: a target is smaller than the source, or cannot be reached; names the nearest size that can.
        UnknownNameError: no family covers the architecture, or there is no such axis.
    """
    family = family_of(config)
    if family.head_norm_key and not getattr(config, family.head_norm_key):
        family = replace(family, head_norm="none")
    _check_options(mode, strategy)
    _check_source(family, config)
    source = model_shape(config, family)
    target = target_shape(family, source, targets)
    approximations = obstacles(family, source, target) + _obstacles_of_settings(family, config, source, target)
    if approximations and not approximate and mode == "exact":
        raise ExpansionError("; ".join(approximations))
    channels = plan_channels(
        config, source["head_dim"], target["head_dim"], partial=family.partial_rotary, interleaved=family.interleaved,
        approximate=approximate or mode == "elle",
    )  # fmt: skip
    layers = (
        random_layers(source["layers"], target["layers"], torch.Generator().manual_seed(seed))
        if mode == "elle"
        else place_layers(source["layers"], target["layers"], placement)
    )
    grows_experts = "experts" in target and "experts" not in source
    target_family = load_family(family.experts_family) if grows_experts and family.experts_family else family
    grown = _grown_config(config, target_family, source, target, layers)
    if channels.parameters is not None:
        if source.get("positions") != target.get("positions") and mode == "exact":
            keep_positions(config, channels.parameters, source["positions"], target["positions"])
        grown.rope_parameters = channels.parameters
    epsilon = getattr(config, family.epsilon_key, None)
    ratio = stream_ratio(family, source, target, strategy) if mode == "exact" and epsilon is not None else 1.0
    if ratio != 1 and epsilon is not None:
        setattr(grown, family.epsilon_key, epsilon * ratio)
    grown = _validated(grown, target)
    return ExpansionPlan(
        family, target_family, source, target, config, grown, layers, channels.channels, channels.pairs, ratio, mode,
        strategy, tuple(approximations), seed,
    )  # fmt: skip


def _check_options(mode: str, strategy: str) -> None:
    if mode not in ("exact", "elle"):
        raise ExpansionError(f"mode: 'exact' or 'elle', not {mode!r}")
    if strategy not in ("pad", "clone", "pairs"):
        raise ExpansionError(f"strategy: 'pad', 'clone' or 'pairs', not {strategy!r}")


def _check_source(family: Family, config: Any) -> None:
    if getattr(config, "quantization_config", None) is not None:
        raise ExpansionError("the checkpoint is quantised; grow the full-precision checkpoint and quantise the result")
    for key, value in family.requires.items():
        if (found := getattr(config, key, value)) != value:
            raise ExpansionError(f"{family.name} with {key}: {found} is not covered; only {key}: {value} is")
    for key, axis in family.follows.items():
        found, wanted = getattr(config, key, None), model_shape(config, family)[axis]
        if found is not None and found != wanted:
            raise ExpansionError(
                f"{family.name} with {key}: {found} is not covered; only {key} equal to {axis} ({wanted})"
            )


def _obstacles_of_settings(
    family: Family, config: Any, source: Mapping[str, int], target: Mapping[str, int]
) -> list[str]:
    """Settings of the model with which an axis cannot grow exactly."""
    return [
        f"{axis}: {target[axis]}: {family.name} with {key}: {getattr(config, key)} keeps the function only with "
        f"{source[axis]}; {axis} can grow where {key} is {value}"
        for axis, settings in family.axis_requires.items()
        for key, value in settings.items()
        if source[axis] != target[axis] and getattr(config, key) != value
    ]


def _grown_config(
    config: Any, family: Family, source: Mapping[str, int], target: Mapping[str, int], layers: tuple[Layer, ...]
) -> Any:
    grown = copy.deepcopy(config)
    if config.model_type not in family.model_types:
        grown = _mixture_config(config, family)
    for axis, key in family.axes.items():
        if axis in target and axis not in family.refuses:
            setattr(grown, key, target[axis])
    for key, axis in family.follows.items():
        setattr(grown, key, target[axis])
    for key in family.first_layers:
        setattr(grown, key, sum(layer.source < getattr(config, key) for layer in layers))
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == source["layers"] and not key.endswith("token_id"):
            setattr(grown, key, [value[layer.source] for layer in layers])
    if own := config.to_dict().get("per_layer_config"):
        places = ((str(place), str(layer.source)) for place, layer in enumerate(layers))
        own = {place: own[source] for place, source in places if source in own}
        grown = type(grown).from_dict({**grown.to_dict(), "per_layer_config": own})
    return grown


def _mixture_config(config: Any, family: Family) -> Any:
    """The configuration of a mixture with everything that the dense model's says; experts are set afterwards."""
    from transformers import AutoConfig

    known = config.to_dict()
    for key in ("attention_bias", "mlp_bias"):
        if known.get(key) and family.name == "mixtral":
            raise ExpansionError(
                f"experts: {config.model_type} with {key} cannot become {family.name}, which has no biases"
            )
    drop = ("model_type", "architectures", "transformers_version", "_name_or_path")
    shared = {key: value for key, value in known.items() if key not in drop}
    shared.setdefault("sliding_window", None)
    return AutoConfig.for_model(family.model_types[0], **{**family.defaults, **shared})


def _validated(grown: Any, target: Mapping[str, int]) -> Any:
    """The configuration as it will be read back.

    Raises:
        ExpansionError: transformers refuses it.
    """
    try:
        again = type(grown).from_dict(grown.to_dict())
    except Exception as error:
        hint = ""
        if target["hidden_size"] % target["heads"]:
            near = target["hidden_size"] // target["heads"] * target["heads"]
            hint = f"; nearest hidden sizes for {target['heads']} heads: {near} and {near + target['heads']}"
        if "short_factor" in str(error):  # checked against hidden size / heads, whatever head_dim says
            hint = f"; nearest exact hidden size for {target['heads']} heads: {target['heads'] * target['head_dim']}"
        reason = " ".join(str(error).split()).rsplit("ValueError: ", 1)[-1]
        raise ExpansionError(f"transformers refuses the grown configuration: {reason}{hint}") from None
    # what an architecture does not know is left out when it is read: Trainer sets use_cache on every configuration
    kept = again.to_dict()
    if changed := [key for key, value in grown.to_dict().items() if key in kept and kept[key] != value]:
        raise ExpansionError(f"the grown configuration does not survive being read back: {', '.join(changed)}")
    for chosen in ("_attn_implementation", "_experts_implementation"):  # choices of this process, written nowhere
        if getattr(grown, chosen, None) is not None:
            setattr(again, chosen, getattr(grown, chosen))
    return again
