"""Larger heads under rotary position embeddings.

rotate_half turns channels m and m + h/2 together, by frequency theta^(-2m/h). With h' = k h the old frequency m is
the new frequency k m, bit for bit. For other sizes `longrope` takes a factor for every pair, chosen so that the
float32 table of the grown model holds the old frequencies bit for bit; the remaining pairs are new.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong.errors import ExpansionError
from lifelong.expand.axes import NEW

SEARCH_ULPS = 4


@dataclass(frozen=True)
class ChannelPlan:
    """`channels` `[h']`: old channel of every new one in queries and keys, or NEW; `parameters` for the config."""

    channels: Tensor
    parameters: Any


def plan_channels(config: Any, old: int, new: int, *, partial: bool = False, approximate: bool = False) -> ChannelPlan:
    """Place the channels of queries and keys when a head grows from `old` to `new` channels.

    Args:
        config: configuration of the old model.
        old: channels of a head.
        new: channels of a grown head.
        partial: the architecture lets part of a head be rotary.
        approximate: place frequencies that cannot be kept bitwise as near as possible.

    Raises:
        ExpansionError: the rotary table cannot be kept; names the nearest sizes.
    """
    parameters = copy.deepcopy(getattr(config, "rope_parameters", None))
    if new == old or parameters is None:
        return ChannelPlan(_appended(old, new), parameters)
    tables = list(_tables(parameters))
    rotary = _rotary_size(tables[0], old)
    if partial:
        # channels behind the rotary ones take part in the scores without a position
        return ChannelPlan(_appended(old, new), _with_partial(parameters, rotary, new))
    if new % 2:
        raise ExpansionError(f"head_dim: {new} is odd; rotary channels come in pairs; nearest: {new - 1} and {new + 1}")
    if new % old == 0 and all(table["rope_type"] in ("default", "linear", "llama3") for table in tables):
        return ChannelPlan(_paired(torch.arange(old // 2) * (new // old), old, new), parameters)
    pairs = _long_tables(config, tables, old, new, approximate=approximate)
    return ChannelPlan(_paired(pairs, old, new), parameters)


def frequencies(config: Any, table: dict[str, Any], size: int) -> tuple[Tensor, float]:
    """`[h/2]` float32 inverse frequencies of a rotary table, and the factor on its cosines, as transformers has."""
    if table["rope_type"] == "default":
        exponents = torch.arange(0, size, 2, dtype=torch.float) / size
        return 1.0 / (table["rope_theta"] ** exponents), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    alone = copy.deepcopy(config)
    alone.rope_parameters, alone.head_dim = dict(table), size
    table_of = ROPE_INIT_FUNCTIONS[table["rope_type"]]
    inverse, factor = table_of(alone, torch.device("cpu"))
    return inverse, float(factor)


def _tables(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rotary tables of a configuration: one, or one per kind of layer."""
    if "rope_type" in parameters:
        yield parameters
    else:
        yield from (table for table in parameters.values() if table is not None)


def _rotary_size(table: dict[str, Any], size: int) -> int:
    return int(size * table.get("partial_rotary_factor", 1.0))


def _with_partial(parameters: Any, rotary: int, new: int) -> Any:
    """The factor that gives the same number of rotary channels in a larger head."""
    factor = rotary / new
    while int(new * factor) < rotary:
        factor = float(np.nextafter(factor, 1.0))
    for table in _tables(parameters):
        table["partial_rotary_factor"] = factor
    return parameters


def _appended(old: int, new: int) -> Tensor:
    return torch.cat([torch.arange(old), torch.full((new - old,), NEW)])


def _paired(pairs: Tensor, old: int, new: int) -> Tensor:
    """Old pair m goes to new pair `pairs[m]`: both of its channels."""
    channels = torch.full((new,), NEW)
    channels[pairs] = torch.arange(old // 2)
    channels[pairs + new // 2] = torch.arange(old // 2) + old // 2
    return channels


def _long_tables(config: Any, tables: list[dict[str, Any]], old: int, new: int, *, approximate: bool) -> Tensor:
    """Turn every table into one with a factor a pair; the pairs are the same for all."""
    for table in tables:
        if table["rope_type"] == "dynamic":
            raise ExpansionError(
                f"head_dim: the model's rotary table changes with the length of the text (dynamic); only multiples of "
                f"{old} would keep it, not {new}"
            )
    wanted = [frequencies(config, table, old) for table in tables]
    free = [new_table(table["rope_theta"], new) for table in tables]
    pairs = _match_pairs(wanted, free, old, new, approximate=approximate)
    for table, (inverse, factor), base in zip(tables, wanted, free, strict=True):
        factors = torch.ones(new // 2)
        for m, pair in enumerate(pairs.tolist()):
            exact = _factor_for(float(inverse[m]), base[pair])
            factors[pair] = exact if exact is not None else 1.0 / (float(inverse[m]) * float(base[pair]))
        table.pop("partial_rotary_factor", None)
        listed = [float(f) for f in factors]
        table |= {
            "rope_type": "longrope", "short_factor": listed, "long_factor": listed, "factor": 1.0,
            "attention_factor": factor, "original_max_position_embeddings": int(config.max_position_embeddings),
        }  # fmt: skip
    return pairs


def new_table(theta: float, size: int) -> Tensor:
    """`[h'/2]` float32: theta^(2j/h'), as longrope computes it."""
    power: Tensor = theta ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    return power


def _factor_for(inverse: float, base: Tensor) -> float | None:
    """A float32 factor f with 1 / (f base) == inverse bitwise, or None."""
    wanted = torch.tensor(inverse, dtype=torch.float32)
    guess = np.float32(1.0 / (float(base) * inverse))
    candidates = [guess]
    up = down = guess
    for _ in range(SEARCH_ULPS):
        up, down = np.nextafter(up, np.float32(np.inf)), np.nextafter(down, np.float32(0))
        candidates += [up, down]
    for factor in candidates:
        made = 1.0 / (torch.tensor(float(factor), dtype=torch.float32) * base)
        if torch.equal(made, wanted):
            return float(factor)
    return None


def _match_pairs(
    wanted: list[tuple[Tensor, float]], free: list[Tensor], old: int, new: int, *, approximate: bool
) -> Tensor:
    """A new pair for every old one such that all tables hold its frequency bitwise (bipartite matching)."""
    near = [round(m * new / old) for m in range(old // 2)]
    order = [sorted(range(new // 2), key=lambda j, at=at: abs(j - at)) for at in near]  # type: ignore[misc]
    possible: dict[tuple[int, int], bool] = {}

    def fits(m: int, j: int) -> bool:
        if (m, j) not in possible:
            possible[m, j] = all(
                _factor_for(float(inverse[m]), base[j]) is not None
                for (inverse, _), base in zip(wanted, free, strict=True)
            )
        return possible[m, j]

    owner: dict[int, int] = {}

    def place(m: int, tried: set[int]) -> bool:
        for j in order[m]:
            if j in tried or not fits(m, j):
                continue
            tried.add(j)
            if j not in owner or place(owner[j], tried):
                owner[j] = m
                return True
        return False

    placed = [place(m, set()) for m in range(old // 2)]
    if not all(placed):
        if not approximate:
            low = new // old * old
            raise ExpansionError(
                f"head_dim: {new}: {placed.count(False)} of {old // 2} rotary frequencies cannot be kept exactly; "
                f"nearest exact sizes: {max(low, old)} and {low + old}"
            )
        rest = [j for j in range(new // 2) if j not in owner]
        for m, ok in enumerate(placed):
            if not ok:
                owner[min(rest, key=lambda j, at=near[m]: abs(j - at))] = m  # type: ignore[misc]
                rest = [j for j in rest if j not in owner]
    pairs = torch.empty(old // 2, dtype=torch.long)
    for j, m in owner.items():
        pairs[m] = j
    return pairs
