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
OTHER_TYPES = (
    "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
)  # fmt: skip
"""Settings of llama3 and yarn, which transformers warns about in a table that has become longrope."""


@dataclass(frozen=True)
class ChannelPlan:
    """Where the channels of a head go.

    Attributes:
        channels: `[h']` old channel of every new one in queries and keys, or NEW.
        pairs: `[r/2]` new place of every pair of the old rotary table.
        parameters: `rope_parameters` of the grown configuration.
    """

    channels: Tensor
    pairs: Tensor
    parameters: Any


def plan_channels(
    config: Any, old: int, new: int, *, partial: bool = False, interleaved: bool = False, approximate: bool = False
) -> ChannelPlan:
    """Place the channels of queries and keys when a head grows from `old` to `new` channels.

    Args:
        config: configuration of the old model.
        old: channels of a head.
        new: channels of a grown head.
        partial: the architecture lets part of a head be rotary.
        interleaved: channels 2m and 2m + 1 are turned together, not m and m + h/2.
        approximate: place frequencies that cannot be kept bitwise as near as possible.

    Raises:
        ExpansionError: the rotary table cannot be kept; names the nearest sizes.
    """
    parameters = copy.deepcopy(getattr(config, "rope_parameters", None))
    if new == old or parameters is None:
        return ChannelPlan(_appended(old, new), torch.arange(old // 2), parameters)
    tables = list(_tables(parameters))
    if partial:
        # channels behind the rotary ones take part in the scores without a position
        rotary = _rotary_size(tables[0], old)
        return ChannelPlan(_appended(old, new), torch.arange(-(-rotary // 2)), _with_partial(parameters, rotary, new))
    if new % 2:
        raise ExpansionError(f"head_dim: {new} is odd; rotary channels come in pairs; nearest: {new - 1} and {new + 1}")
    if new % old == 0 and all(table["rope_type"] in ("default", "linear", "llama3") for table in tables):
        pairs = torch.arange(old // 2) * (new // old)
    else:
        pairs = _long_tables(config, tables, old, new, approximate=approximate)
    return ChannelPlan(_paired(pairs, old, new, interleaved=interleaved), pairs, parameters)


def keep_positions(config: Any, parameters: Any, old: int, new: int) -> None:
    """Write into `parameters` what transformers would derive from the number of positions, at its old value.

    Raises:
        ExpansionError: the rotary table depends on that number and no other value keeps it.
    """
    for table in _tables(parameters or {}):
        kind = table.get("rope_type", "default")
        if kind == "dynamic":
            raise ExpansionError(
                f"positions: {new}: the rotary table changes with the length of the text over max_position_embeddings "
                f"({kind}), and another maximum is another function beyond {old} tokens; leave positions out (the "
                "model takes longer texts as it is)"
            )
        if kind in ("longrope", "yarn"):
            original = table.get("original_max_position_embeddings") or config.max_position_embeddings
            if table.get("factor") is None:
                table["factor"] = old / original
            if table.get("attention_factor") is None and kind == "longrope":
                table["attention_factor"] = frequencies(config, table, _head_size(config))[1]


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def frequencies(config: Any, table: dict[str, Any], size: int, length: int = 0) -> tuple[Tensor, float]:
    """`[h/2]` float32 inverse frequencies of a rotary table, and the factor on its cosines, as transformers has.

    `length` is that of the text, for tables that depend on it.
    """
    if table["rope_type"] == "default":
        exponents = torch.arange(0, size, 2, dtype=torch.float) / size
        return 1.0 / (table["rope_theta"] ** exponents), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    alone = copy.deepcopy(config)
    alone.rope_parameters, alone.head_dim = dict(table), size
    table_of = ROPE_INIT_FUNCTIONS[table["rope_type"]]
    inverse, factor = table_of(alone, torch.device("cpu"), **({"seq_len": length} if length else {}))
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


def _paired(pairs: Tensor, old: int, new: int, *, interleaved: bool = False) -> Tensor:
    """Old pair m goes to new pair `pairs[m]`: both of its channels."""
    channels = torch.full((new,), NEW)
    if interleaved:
        for side in (0, 1):
            channels[2 * pairs + side] = 2 * torch.arange(old // 2) + side
        return channels
    channels[pairs] = torch.arange(old // 2)
    channels[pairs + new // 2] = torch.arange(old // 2) + old // 2
    return channels


def _long_tables(config: Any, tables: list[dict[str, Any]], old: int, new: int, *, approximate: bool) -> Tensor:
    """Turn every table into one with a factor a pair; the pairs are the same for all."""
    wanted, free = [], []
    for table in tables:
        if table["rope_type"] == "dynamic":
            raise ExpansionError(
                f"head_dim: {new}: the rotary table changes with the length of the text by a power that depends on the "
                f"head size (dynamic); no larger head keeps it; the only exact size: {old}"
            )
        # longrope has a table for short texts and one for long ones; others are alike at every length
        original = int(table.get("original_max_position_embeddings") or config.max_position_embeddings)
        for length in (original, original + 1) if table["rope_type"] == "longrope" else (0,):
            wanted.append(frequencies(config, table, old, length))
            free.append(new_table(table["rope_theta"], new))
    pairs = _match_pairs(wanted, free, old, new, approximate=approximate)
    made = iter(zip(wanted, free, strict=True))
    for table in tables:
        short = next(made)
        long = next(made) if table["rope_type"] == "longrope" else short
        # where short and long texts differ, or queries scale by it (Ministral 3); else no text is long
        switches = table["rope_type"] == "longrope" or "llama_4_scaling_beta" in table
        kept = table.get("original_max_position_embeddings") if switches else None
        for key in ("partial_rotary_factor", *OTHER_TYPES):
            table.pop(key, None)
        table |= {
            "rope_type": "longrope", "short_factor": _factors(pairs, *short, new),
            "long_factor": _factors(pairs, *long, new), "factor": 1.0, "attention_factor": short[0][1],
            "original_max_position_embeddings": int(kept or config.max_position_embeddings),
        }  # fmt: skip
    return pairs


def _factors(pairs: Tensor, wanted: tuple[Tensor, float], base: Tensor, new: int) -> list[float]:
    """A factor for every pair of the new table, 1 where it is new."""
    factors = torch.ones(new // 2)
    for m, pair in enumerate(pairs.tolist()):
        inverse = float(wanted[0][m])
        exact = _factor_for(inverse, base[pair])
        factors[pair] = exact if exact is not None else 1.0 / (inverse * float(base[pair]))
    return [float(f) for f in factors]


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
