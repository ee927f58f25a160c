"""From shape to shape: what is feasible, and the configuration of the grown model; loads no weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lifelong.errors import ExpansionError
from lifelong.expand.family import AXES, Family, family_of, load_family


@dataclass(frozen=True)
class ExpansionPlan:
    """A feasible growth: the family, both shapes and the configuration of the result."""

    family: Family
    source: Mapping[str, int]
    target: Mapping[str, int]
    target_config: Any
    mode: str = "exact"

    def explain(self) -> str:
        """What would be done, as text."""
        lines = [f"family {self.family.name}, mode {self.mode}"]
        for axis in AXES:
            before, after = self.source[axis], self.target[axis]
            arrow = f"{before} -> {after}" if before != after else f"{before} (stays)"
            lines.append(f"  {axis:18} {arrow}")
        exactness = (
            "to float64 rounding (1e-10 or better)" if self.mode == "exact" else "not: random copies, as published"
        )
        lines.append(f"function preserved: {exactness}")
        return "\n".join(lines)


def model_shape(config: Any) -> dict[str, int]:
    """Sizes of a model by axis name; works for every transformers configuration with the usual names."""
    heads = int(config.num_attention_heads)
    hidden = int(config.hidden_size)
    return {
        "layers": int(config.num_hidden_layers),
        "hidden_size": hidden,
        "intermediate_size": int(_first(config, ("intermediate_size", "n_inner", "ffn_dim")) or 4 * hidden),
        "heads": heads,
        "kv_heads": int(getattr(config, "num_key_value_heads", None) or heads),
        "head_dim": int(getattr(config, "head_dim", None) or hidden // heads),
        "vocab_size": int(config.vocab_size),
    }


def _first(config: Any, names: tuple[str, ...]) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def plan_expansion(config: Any, *, mode: str = "exact", **targets: int | None) -> ExpansionPlan:
    """Check a growth and build the configuration of its result.

    Args:
        config: configuration of the model to grow.
        mode: `exact`, or `elle` for random copies as published.
        targets: larger sizes by axis name; what is not named stays.

    Raises:
        ExpansionError: a target is smaller than the source, or cannot be reached; names the nearest size that can.
        UnknownNameError: no family covers the architecture.
    """
    family = family_of(config.model_type)
    if getattr(config, "quantization_config", None) is not None:
        raise ExpansionError("the checkpoint is quantised; grow the full-precision checkpoint and quantise the result")
    source = model_shape(config)
    target = {**source, **{axis: int(size) for axis, size in targets.items() if size is not None}}
    if targets.get("heads") is not None and targets.get("kv_heads") is None:
        target["kv_heads"] = _kv_heads_for(source, target["heads"])
    for axis in AXES:
        if target[axis] < source[axis]:
            raise ExpansionError(
                f"{axis}: {target[axis]} is smaller than the model's {source[axis]}; growth never shrinks"
            )
    if target["head_dim"] != source["head_dim"]:
        raise ExpansionError(
            f"head_dim: {target['head_dim']}: rotary heads keep their size of {source['head_dim']}; add heads instead"
        )
    _check_heads(source, target)
    return ExpansionPlan(family, source, target, _grown_config(config, family, source, target), mode)


def _kv_heads_for(source: Mapping[str, int], heads: int) -> int:
    """Key-value heads that go with more query heads: the same group size where it divides, else as they are."""
    group = source["heads"] // source["kv_heads"]
    if group == 1:
        return heads
    return heads // group if heads % group == 0 else source["kv_heads"]


def _check_heads(source: Mapping[str, int], target: Mapping[str, int]) -> None:
    heads, kv = target["heads"], target["kv_heads"]
    if heads % kv:
        near = [n for n in range(source["kv_heads"], heads + 1) if heads % n == 0]
        raise ExpansionError(
            f"heads: {heads} is no multiple of kv_heads {kv}; with {heads} heads, kv_heads may be {near}"
        )
    old_group, new_group = source["heads"] // source["kv_heads"], heads // kv
    needed = source["kv_heads"] * -(-old_group // new_group)
    if needed > kv:
        raise ExpansionError(
            f"heads: {source['heads']} query heads in {source['kv_heads']} groups do not fit into {kv} groups of "
            f"{new_group}; at least {needed} kv_heads are needed, or larger groups"
        )


def _grown_config(config: Any, family: Family, source: Mapping[str, int], target: Mapping[str, int]) -> Any:
    grown = copy.deepcopy(config)
    for axis in AXES:
        setattr(grown, family.config_names[axis], target[axis])
    _per_layer(config, grown, source, target)
    try:
        type(config)(**grown.to_dict())
    except Exception as error:
        hint = ""
        if target["hidden_size"] % target["heads"]:
            near = target["hidden_size"] // target["heads"] * target["heads"]
            hint = f"; nearest hidden sizes for {target['heads']} heads: {near} and {near + target['heads']}"
        reason = " ".join(str(error).split()).rsplit("ValueError: ", 1)[-1]
        raise ExpansionError(f"transformers refuses the grown configuration: {reason}{hint}") from None
    return grown


def _per_layer(config: Any, grown: Any, source: Mapping[str, int], target: Mapping[str, int]) -> None:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        grown.layer_types = [kinds[old] for old, _ in layer_sources(source["layers"], target["layers"])]


def layer_sources(old: int, new: int) -> list[tuple[int, bool]]:
    """For every layer of the grown model the layer it comes from, and whether it is an inserted one.

    Insertions are spread evenly, each right behind the layer it resembles.
    """
    extra = [0] * old
    for number in range(new - old):
        extra[(number * old) // (new - old) if new - old <= old else number % old] += 1
    if new - old <= old:  # one each, spread from the end: early layers keep their neighbours
        extra = [0] * old
        for number in range(new - old):
            extra[((number + 1) * old) // (new - old) - 1] += 1
    return [entry for layer in range(old) for entry in [(layer, False), *[(layer, True)] * extra[layer]]]


def new_config(family_name: str, *, vocab_size: int, max_positions: int, **settings: Any) -> Any:
    """Configuration of a model that starts from random weights.

    Args:
        family_name: a family, or any `model_type` of transformers (which then cannot grow).
        vocab_size: rows of the embedding.
        max_positions: longest sequence.
        settings: sizes by axis name, and any further key of the configuration.

    Raises:
        UnknownNameError: there is no such family.
        ExpansionError: heads do not divide the hidden size and no head size is named.
    """
    import transformers

    family = load_family(family_name)
    sizes = {axis: settings.pop(axis) for axis in AXES if settings.get(axis) is not None}
    settings = {key: value for key, value in settings.items() if value is not None}
    hidden, heads = sizes.get("hidden_size", 128), sizes.get("heads", 4)
    if "head_dim" not in sizes and hidden % heads:
        raise ExpansionError(
            f"hidden_size: {hidden} is no multiple of {heads} heads; name head_dim, or another number of heads"
        )
    shape = {
        "layers": 4,
        "hidden_size": hidden,
        # two thirds of four times the width, in steps of 32: as many weights as an ungated layer of 4x
        "intermediate_size": -(-8 * hidden // 3 // 32) * 32,
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // heads,
        **sizes,
    }
    values = {family.config_names[axis]: size for axis, size in shape.items()}
    special = {key: settings.pop(key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return transformers.AutoConfig.for_model(
        family.model_types[0],
        **{
            **family.defaults,
            "vocab_size": vocab_size,
            "max_position_embeddings": max_positions,
            **special,
            **values,
            **settings,
        },
    )
