"""Functions of position and length: rotary tables, windows, softcaps, scales by length.

A comparison of logits sees as many tokens as it is given; these are compared themselves,
at any length, in milliseconds.

Shapes: N positions, P rotary pairs of the old model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.errors import ExpansionError
from lifelong.expand.plan import ExpansionPlan

TABLE_TOLERANCE = 1e-6
"""Tables hold the same numbers; processors round the cosine of the last few in another way."""
SHORT, BEYOND = 16, 8
NO_FACTS = ("training", "store_full_length_kv")
"""Of a layer; the second says that others share its keys, which is refused."""
FACT_WORDS = ("window", "sliding", "chunk", "cap", "rope", "beta", "temperature", "attention_type", "layer_type")


def check_position_functions(plan: ExpansionPlan, small: Any, large: Any) -> None:
    """Compare what the models do by position and length; both need no weights.

    Raises:
        ExpansionError: the grown model is another function of them; names it.
    """
    if not plan.is_exact:
        return
    for length in lengths_of(plan):
        before, after = (rotary_tables(model, length) for model in (small, large))
        for name, (kept, _) in before.items():
            if name not in after:
                raise ExpansionError(f"rotary table {name} is not in the grown model")
            grows = plan.source["head_dim"] != plan.target["head_dim"]
            at = plan.pairs[: kept.shape[-1]] if grows else slice(None)
            moved = max(
                float((old - new[..., at]).abs().max())
                for old, new in zip((kept, before[name][1]), after[name], strict=True)
            )
            if moved > TABLE_TOLERANCE:
                raise ExpansionError(
                    f"the rotary table{' ' * bool(name)}{name} of the grown model differs by {moved:.1e} from the old "
                    f"one on texts of {length} tokens; {_grown_by(plan)}"
                )
    _check_layers(plan, small, large)
    _check_configurations(plan)


def lengths_of(plan: ExpansionPlan) -> list[int]:
    """Lengths of texts to look at: short, around every limit of the old model, far beyond, and short again."""
    config, limits = plan.source_config, {plan.source.get("positions", SHORT)}
    parameters = getattr(config, "rope_parameters", None) or {}
    for table in (parameters, *(value for value in parameters.values() if isinstance(value, dict))):
        limits.add(int(table.get("original_max_position_embeddings") or SHORT))
    around = sorted({n + more for n in limits for more in (0, 1)})
    return [SHORT, *around, BEYOND * max(limits), SHORT]


def _grown_by(plan: ExpansionPlan) -> str:
    grown = [
        axis for axis in ("head_dim", "positions", "hidden_size") if plan.source.get(axis) != plan.target.get(axis)
    ]
    return f"leave {' and '.join(grown)} as it is" if grown else "a fault of the family's table"


def rotary_tables(model: Any, length: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Cosines and sines `[N,P]` by kind of layer, at some positions of a text of `length` tokens."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    places = torch.tensor([[0, 1, length // 2, length - 1]])
    for module in _rotary_modules(model):
        kinds = sorted(set(getattr(module, "layer_types", None) or [""]))
        takes_kind = "layer_type" in inspect.signature(module.forward).parameters
        for kind in kinds if takes_kind else [""]:
            cos, sin = module(torch.zeros(1), places, **({"layer_type": kind} if kind else {}))
            found[kind] = _by_pair(cos[0]), _by_pair(sin[0])
    return found


def _rotary_modules(model: nn.Module) -> Iterator[Any]:
    """Modules that make a table from positions; the same one is often kept by every layer."""
    for module in model.modules():
        own = dict(module.named_buffers(recurse=False))
        if (
            any(name.endswith("inv_freq") for name in own)
            and "position_ids" in inspect.signature(module.forward).parameters
        ):
            yield module


def _by_pair(table: Tensor) -> Tensor:
    """One column a pair, whether the table repeats them in halves or as neighbours."""
    half = table.shape[-1] // 2
    if table.shape[-1] % 2 == 0 and torch.allclose(table[..., :half], table[..., half:], atol=TABLE_TOLERANCE):
        return table[..., :half]
    if table.shape[-1] % 2 == 0 and torch.allclose(table[..., ::2], table[..., 1::2], atol=TABLE_TOLERANCE):
        return table[..., ::2]
    return table


def _check_layers(plan: ExpansionPlan, small: Any, large: Any) -> None:
    """Windows and the like of every layer are those of the layer that it comes from."""
    if plan.target_family is not plan.family:
        return
    before, after = (layer_facts(model) for model in (small, large))
    for place, layer in enumerate(plan.layers):
        for name, value in before.get(layer.source, {}).items():
            found = after[place].get(name)
            if found != value:
                raise ExpansionError(
                    f"layer {place} of the grown model has {name}: {found}, layer {layer.source} that it comes from "
                    f"has {value}; {plan.family.name} cannot grow like this"
                )


def layer_facts(model: Any) -> dict[int, dict[str, Any]]:
    """Attributes of the modules of every layer that say how it treats positions, by layer."""
    facts: dict[int, dict[str, Any]] = {}
    for path, module in model.named_modules():
        parts = path.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if number is None:
            continue
        inner = ".".join(parts[number + 1 :])
        for name, value in vars(module).items():
            if _is_fact(name, value):
                facts.setdefault(int(parts[number]), {})[f"{inner}.{name}".lstrip(".")] = value
    return facts


def _is_fact(name: str, value: Any) -> bool:
    if name.startswith("_") or name in NO_FACTS or isinstance(value, Tensor):
        return False
    if isinstance(value, bool | str):
        return True
    return isinstance(value, int | float | None) and any(word in name for word in FACT_WORDS)


def _check_configurations(plan: ExpansionPlan) -> None:
    """What is no size stays as it was: softcaps, multipliers, windows."""
    if plan.target_family is not plan.family:
        return
    before, after = (config.to_dict() for config in (plan.source_config, plan.target_config))
    family = plan.family
    scales = [_scales_by_position(config) for config in (plan.source_config, plan.target_config)]
    if scales[0] != scales[1]:
        raise ExpansionError(f"queries of the grown model are scaled by position by {scales[1]}, not {scales[0]}")
    grown = {*family.axes.values(), *family.follows, *family.first_layers, family.epsilon_key}
    grown |= {"rope_parameters", "head_dim", "architectures"}
    for key, value in before.items():
        if key in grown or isinstance(value, list | Mapping) or key.startswith("_"):
            continue
        if key in after and after[key] != value:
            raise ExpansionError(
                f"{key} of the grown configuration is {after[key]!r}, not {value!r}: {family.name} cannot grow so"
            )


def _scales_by_position(config: Any) -> dict[str, Any]:
    """What scales queries by their position (LLaMA 4, Ministral 3)."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if "llama_4_scaling_beta" not in parameters:
        return {}
    return {key: parameters.get(key) for key in ("llama_4_scaling_beta", "original_max_position_embeddings")}
