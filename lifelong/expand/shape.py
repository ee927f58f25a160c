"""Sizes of a model, and which larger ones can be reached; loads no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifelong.errors import ExpansionError, UnknownNameError
from lifelong.expand.family import AXES, Family, family_of

Shape = Mapping[str, int]

LARGEST = {
    "layers": 10_000, "hidden_size": 1 << 18, "intermediate_size": 1 << 22, "heads": 100_000, "kv_heads": 100_000,
    "head_dim": 65_536, "experts": 100_000,
}  # fmt: skip
LARGEST_OTHER = 10**8
"""Sizes beyond these are slips of the finger; they would keep a machine busy before anything is refused."""


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Refuse what no model has, before anything is counted up to it.

    Raises:
        ExpansionError: names the axis.
    """
    for axis, size in sizes.items():
        if size > (most := LARGEST.get(axis, LARGEST_OTHER)):
            raise ExpansionError(f"{axis}: {size} is more than any model has; at most {most:,}")


USUAL_KEYS: Mapping[str, tuple[str, ...]] = {
    "intermediate_size": ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim"),
    "positions": ("max_position_embeddings",),
    "experts": ("num_local_experts",),
    "experts_per_token": ("num_experts_per_tok",),
    "layers": ("num_hidden_layers",),
    "hidden_size": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size",),
}


def model_shape(config: Any, family: Family | None = None) -> dict[str, int]:
    """Sizes of a model by axis name, by the keys of its family; others need to have the usual ones."""
    known = family or _family_or_none(config)
    keys: Mapping[str, str] = known.axes if known else {}
    written = config.to_dict()  # what layers may differ in is no attribute of the configuration

    def size(axis: str, default: int = 0) -> int:
        named = (keys[axis],) if axis in keys else ()
        names = (*named, *USUAL_KEYS[axis])
        found = (written[key] if key in written else getattr(config, key, None) for key in names)
        return int(next((value for value in found if value is not None), default))

    heads, hidden = size("heads"), size("hidden_size")
    shape = {
        "layers": size("layers"),
        "hidden_size": hidden,
        "intermediate_size": size("intermediate_size") or 4 * hidden,
        "heads": heads,
        "kv_heads": size("kv_heads") or heads,
        "head_dim": size("head_dim") or hidden // heads,
        "vocab_size": size("vocab_size"),
    }
    if positions := size("positions"):
        shape["positions"] = positions
    if experts := size("experts"):
        shape |= {"experts": experts, "experts_per_token": size("experts_per_token")}
    return shape


def _family_or_none(config: Any) -> Family | None:
    try:
        return family_of(config)
    except UnknownNameError:
        return None


def estimated_parameters(family: Family, shape: Shape, *, tied: bool) -> int:
    """Parameters of a model of this shape, from its large matrices alone."""
    width, heads = shape["hidden_size"], 2 * shape["heads"] + 2 * shape["kv_heads"]
    neurons = shape["intermediate_size"] * shape.get("experts", 1) * (3 if family.gated else 2)
    embeddings = shape["vocab_size"] * (1 if tied else 2)
    return width * (embeddings + shape["layers"] * (heads * shape["head_dim"] + neurons))


def target_shape(family: Family, source: Shape, targets: Mapping[str, int | None]) -> dict[str, int]:
    """The sizes after growth: what is not named stays, what hangs together grows together.

    Raises:
        UnknownNameError: an axis that there is not.
        ExpansionError: a size is smaller than the model's, or sizes contradict each other.
    """
    named = {axis: int(size) for axis, size in targets.items() if size is not None}
    for axis in named:
        if axis not in AXES:
            raise UnknownNameError("axis", axis, AXES, "expand")
    check_sizes(named)
    for axis, reason in family.refuses.items():
        if named.get(axis, source.get(axis)) != source.get(axis):
            raise ExpansionError(f"{axis}: {family.name} keeps its {source.get(axis, 0)}: {reason}")
    target = {**source, **named}
    _resolve_heads(family, source, target, named)
    for axis, size in source.items():
        if target[axis] < size:
            raise ExpansionError(f"{axis}: {target[axis]} is smaller than the model's {size}; growth never shrinks")
    _resolve_experts(family, source, target, named)
    return target


def _resolve_heads(family: Family, source: Shape, target: dict[str, int], named: Mapping[str, int]) -> None:
    if family.fixed_head:
        grouped = "kv_heads" in family.axes
        if not grouped and "kv_heads" in named and named["kv_heads"] != named.get("heads", source["heads"]):
            raise ExpansionError(f"kv_heads: {family.name} has one key-value head per query head; leave kv_heads out")
        _resolve_fixed_heads(family, source, target, named)
        if not grouped:
            target["kv_heads"] = target["heads"]
            return
    if target["heads"] != source["heads"] and "kv_heads" not in named:
        group = source["heads"] // source["kv_heads"]
        keeps_group = target["heads"] % group == 0 and target["heads"] // group >= source["kv_heads"]
        target["kv_heads"] = target["heads"] // group if keeps_group else source["kv_heads"]
    heads, kv = target["heads"], target["kv_heads"]
    if heads % kv:
        near = [n for n in range(source["kv_heads"], heads + 1) if heads % n == 0]
        raise ExpansionError(
            f"heads: {heads} is not a multiple of kv_heads {kv}; with {heads} heads, kv_heads may be {_listed(near)}; "
            f"with {kv} kv_heads, heads may be {heads // kv * kv or kv} or {(heads // kv + 1) * kv}"
        )


def _resolve_fixed_heads(family: Family, source: Shape, target: dict[str, int], named: Mapping[str, int]) -> None:
    """Solve hidden size = heads x head size for what is not named."""
    hidden, heads, size = named.get("hidden_size"), named.get("heads"), named.get("head_dim")
    if hidden is None and (heads is not None or size is not None):
        product = (heads or source["heads"]) * (size or source["head_dim"])
        if product != source["hidden_size"]:
            raise ExpansionError(
                f"hidden_size: {family.name} has heads x head_dim = hidden_size, and {heads or source['heads']} x "
                f"{size or source['head_dim']} = {product}; name hidden_size {product} too"
            )
    elif hidden is not None:
        if size is None and heads is not None and hidden % heads == 0:
            size = hidden // heads
        size = size or source["head_dim"]
        heads = heads or hidden // size
        if heads * size != hidden:
            step = heads if named.get("heads") else size
            low = max(hidden // step * step, source["hidden_size"])
            raise ExpansionError(
                f"hidden_size: {family.name} has heads x head_dim = hidden_size, and {hidden} is not a multiple of "
                f"{'heads' if named.get('heads') else 'head_dim'} {step}; nearest: {low} and {low + step}"
                + ("" if named.get("heads") else ", or name heads")
            )
        target |= {"heads": heads, "head_dim": size}


def _resolve_experts(family: Family, source: Shape, target: dict[str, int], named: Mapping[str, int]) -> None:
    if "experts" not in named and "experts_per_token" not in named:
        return
    if "experts" not in source:
        if family.experts_family is None:
            raise ExpansionError(f"experts: {family.name} has no mixture of experts that it could become")
        target.setdefault("experts", 1)
        target.setdefault("experts_per_token", min(2, target["experts"]))
        if not 1 <= target["experts_per_token"] <= target["experts"]:
            raise ExpansionError(
                f"experts_per_token: {target['experts_per_token']} of {target['experts']} experts cannot be chosen"
            )
        return
    if "experts_per_token" not in named:
        target["experts_per_token"] = target["experts"] // source["experts"] * source["experts_per_token"]
    if target["experts_per_token"] > target["experts"]:
        raise ExpansionError(
            f"experts_per_token: {target['experts_per_token']} of {target['experts']} experts cannot be chosen"
        )


def obstacles(family: Family, source: Shape, target: Shape) -> list[str]:
    """Why the target cannot be reached exactly; each with the nearest sizes that can."""
    found = []
    width, wider = source["hidden_size"], target["hidden_size"]
    if family.placement in ("stream", "embedding") and wider % width:
        low = wider // width * width
        found.append(
            f"hidden_size: {wider} is not a multiple of {width}: the output of a LayerNorm is the stream of "
            f"{family.name}, and no diagonal gain can give the next norm the mean it needs; nearest exact sizes: "
            f"{low} and {low + width}"
        )
    old_group, group = source["heads"] // source["kv_heads"], target["heads"] // target["kv_heads"]
    needed = source["kv_heads"] * -(-old_group // group)
    if needed > target["kv_heads"]:
        larger = target["kv_heads"] * old_group
        found.append(
            f"kv_heads: {source['heads']} query heads in {source['kv_heads']} groups do not fit into "
            f"{target['kv_heads']} groups of {group}; at least kv_heads {needed} (heads {needed * group}), or heads "
            f"{larger} with kv_heads {target['kv_heads']}"
        )
    return found + _expert_obstacles(source, target)


def _expert_obstacles(source: Shape, target: Shape) -> list[str]:
    if "experts" not in source:
        return []
    old, chosen = source["experts"], source["experts_per_token"]
    copies, rest = divmod(target["experts"], old)
    if rest:
        low = copies * old
        return [
            f"experts: {target['experts']} is not a multiple of the model's {old}; copies keep the function only when "
            f"every expert has as many; nearest: {low} and {low + old}"
        ]
    if target["experts_per_token"] != copies * chosen:
        return [
            f"experts_per_token: with {target['experts']} experts it has to be {copies * chosen}: every expert becomes "
            f"{copies}, all chosen together; {target['experts_per_token']} would change the function"
        ]
    return []


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes)) or "no size"
