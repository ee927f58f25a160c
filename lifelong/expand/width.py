"""The maps of all axes of a growth.

Stream, width d to D. An isometry keeps mean(x^2) (RMSNorm) or mean and variance (LayerNorm), so no epsilon changes:
  RMSNorm, pad:    x' = [s x; 0],               s = sqrt(D/d)
  RMSNorm, clone:  x'_j = c_j x_i(j),           c_j = sqrt(D / (d n_i(j))), n_i copies of i
  LayerNorm:       x' = s [x; ..; x; mean(x)],  s = sqrt(D / (k d)) with k copies and D - k d means
  LayerNorm as the stream (BERT): x' = [x; ..; x], D = k d
Where every norm with the configuration's epsilon is on the stream, s = 1 and that epsilon becomes eps d/D instead: old
entries of matrices stay bit for bit, also in bfloat16, and gains take sqrt(d/D) (`stream_ratio`).
A norm's gain undoes the factor; what reads its output sees the old values, and zeros or copies beside them.

Source: Gesmundo & Maile 2023 (arXiv 2308.06103) for zero-padding without the RMS rescale; LEMON (arXiv 2310.07999)
for mean-filled LayerNorm, which changes epsilon instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lifelong.expand.axes import MEAN, NEW, AxisMap, axis_map
from lifelong.expand.family import Family
from lifelong.expand.heads import HeadPlacement, by_channel, place_heads

Strategy = Literal["pad", "clone", "pairs"]
NEW_TOKEN_NOISE = 0.1
"""New tokens are the mean of the old ones plus this part of the initial scale: they cannot take probability."""


@dataclass(frozen=True)
class Growth:
    """Everything the axis maps depend on."""

    family: Family
    source: Mapping[str, int]
    target: Mapping[str, int]
    strategy: Strategy
    tied: bool
    position_rows: tuple[int, int]
    channels: Tensor
    """`[h']`: old channel of every channel of a query or key head, or NEW."""
    ratio: float = 1.0
    """Of the mean square that a norm on the stream sees, to that of the old model."""

    def grows(self, axis: str) -> bool:
        """Whether a size changes."""
        return self.source.get(axis) != self.target.get(axis)


def exact_axes(growth: Growth) -> dict[str, AxisMap]:
    """Axis maps that keep the function."""
    source, target = growth.source, growth.target
    axes = stream_axes(growth) | head_axes(growth) | feed_forward_axes(growth)
    axes |= fixed_axes(growth)
    if "experts" in target:
        old = source.get("experts", 1)
        copies = torch.arange(target["experts"]) % old
        axes["experts"] = axis_map(copies, old, dual=1 / _copies(copies, old))
    return axes


def fixed_axes(growth: Growth) -> dict[str, AxisMap]:
    """Axes that only ever get new rows: tokens and positions."""
    source, target = growth.source, growth.target
    tokens = torch.cat([arange(source["vocab_size"]), filled(target["vocab_size"] - source["vocab_size"], MEAN)])
    old_rows, new_rows = growth.position_rows
    return {
        "vocab": axis_map(tokens, source["vocab_size"], fresh=NEW_TOKEN_NOISE),
        "positions": appended(old_rows, new_rows, fresh=1.0),
    }


# --- the residual stream ------------------------------------------------------------------------------------


def stream_ratio(family: Family, source: Mapping[str, int], target: Mapping[str, int], strategy: Strategy) -> float:
    """What epsilon is multiplied by when the old stream is left unscaled; 1 where that is not possible.

    Norms of heads share the configuration's epsilon and see no more than before; Gemma scales its embeddings by the
    width anyway; uneven copies need a factor each.
    """
    old, new = source["hidden_size"], target["hidden_size"]
    if family.placement not in ("pre", "sandwich") or family.head_norm != "none" or family.scaled_embedding:
        return 1.0
    if strategy == "clone":
        return new // old * old / new if family.norm == "layer" else 1.0
    return old / new


def stream_axes(growth: Growth) -> dict[str, AxisMap]:
    """The stream as it is written, read, and normalised."""
    family, old, new = growth.family, growth.source["hidden_size"], growth.target["hidden_size"]
    if family.placement in ("stream", "embedding"):
        index, written, fills = arange(new) % old, torch.ones(new, dtype=torch.float64), 0
    elif family.norm == "rms":
        index = arange(new) % old if growth.strategy == "clone" else torch.cat([arange(old), filled(new - old, NEW)])
        fills = 0
        written = (new / (old * _copies(index, old)) * growth.ratio).sqrt()
    else:
        copies = new // old if growth.strategy == "clone" else 1
        fills = new - copies * old
        index = torch.cat([arange(copies * old) % old, filled(fills, MEAN)])
        written = torch.full((new,), math.sqrt(new / (copies * old) * growth.ratio), dtype=torch.float64)
    return _stream_sides(growth, index, written)


def _stream_sides(growth: Growth, index: Tensor, written: Tensor) -> dict[str, AxisMap]:
    """All sides of the stream from its index map and the factor `c` `[D]` of what is written."""
    family, old = growth.family, growth.source["hidden_size"]
    many = _copies(index, old)
    read_index = torch.where(index == MEAN, NEW, index)
    split = bool((many > 1).any())
    # norms see c x, divide by r (1 with an isometry), and hand on x; a tied output embedding is c E, so that the last
    # gain also undoes sum c^2
    tied, root = growth.tied and not family.has("mlm_norm"), math.sqrt(growth.ratio)
    total = float((written * written)[read_index >= 0].sum() / old)
    gain_read = AxisMap(
        read_index, old, root / written, written / (root * many), torch.zeros_like(many), torch.ones_like(many)
    )  # fmt: skip
    bias_read = replace(gain_read, scale=torch.ones_like(many), dual=1 / many, constant=torch.zeros_like(many))
    reads = axis_map(read_index, old, fresh=1.0, split=split)
    raw = family.placement == "post"  # OLMo 2 reads the stream without a norm
    final_gain, final_bias = gain_read, bias_read
    if tied:
        # sum over copies of c_j E * (g' c_j z) has to be E g z
        final_gain = replace(gain_read, scale=torch.full_like(many, root / total), dual=written * written / root)
        final_bias = replace(bias_read, scale=written / total, dual=written)
    return {
        "stream.write": AxisMap(
            index, old, written, 1 / (many * written), torch.zeros_like(many), torch.zeros_like(many)
        ),
        "stream.read": replace(reads, scale=1 / written, dual=written) if raw else reads,
        "stream.head": reads,
        "stream.gain": gain_read,
        "stream.bias": bias_read,
        "stream.final_gain": final_gain,
        "stream.final_bias": final_bias,
        # a norm behind a sublayer sees the isometric image of its output: the gain stays
        "stream.post": AxisMap(
            read_index,
            old,
            torch.full_like(many, root),
            1 / (root * many),
            torch.zeros_like(many),
            torch.ones_like(many),
        ),
        "stream.norm": axis_map(read_index, old, dual=1 / many),
        "stream.mlm": axis_map(read_index, old, dual=1 / many),
        "stream.mlm_norm": axis_map(
            read_index, old, scale=1 / many if growth.tied else 1.0, dual=1.0 if growth.tied else 1 / many
        ),
    }


# --- attention ----------------------------------------------------------------------------------------------


def head_axes(growth: Growth) -> dict[str, AxisMap]:
    """Queries, keys, values, what the output projection reads, and norms on queries and keys."""
    family, source, target = growth.family, growth.source, growth.target
    fill = "clone" if growth.strategy == "clone" else "copy" if family.head_norm == "full" else "new"
    placed = place_heads(source, target, fill=fill)
    size, wider = source["head_dim"], target["head_dim"]
    score = math.sqrt(wider / size) if family.score_scale == "head_dim" else 1.0
    plain = torch.cat([arange(size), filled(wider - size, NEW)])
    values = by_channel(placed.keys, plain, size)
    outputs = by_channel(placed.outputs, plain, size)
    rows = source["kv_heads"] * size
    axes = {
        "v": axis_map(values, rows, dual=1 / _copies(values, rows), fresh=1.0),
        "o": axis_map(outputs, source["heads"] * size, split=fill == "clone"),
        "gate": axis_map(outputs, source["heads"] * size, dual=1 / _copies(outputs, source["heads"] * size), fresh=1.0),
        "each_head": axis_map(placed.queries, source["heads"], dual=1 / _copies(placed.queries, source["heads"])),
    }
    if family.head_norm == "none":
        return axes | _plain_heads(growth, placed, score)
    return axes | _normed_heads(growth, placed, score)


def _plain_heads(growth: Growth, placed: HeadPlacement, score: float) -> dict[str, AxisMap]:
    """Scores are divided by sqrt(h'), so queries grow by sqrt(h'/h); new channels have silent queries."""
    size, wider = growth.source["head_dim"], growth.target["head_dim"]
    queries = by_channel(placed.queries, growth.channels, size)
    keys = by_channel(placed.keys, growth.channels, size)
    q_rows, k_rows = growth.source["heads"] * size, growth.source["kv_heads"] * size
    is_new_head = (placed.queries < 0).repeat_interleave(wider).double()
    loud = torch.where(growth.channels.repeat(len(placed.queries)) < 0, is_new_head, 1.0)
    return {
        "q": axis_map(queries, q_rows, scale=score, dual=1 / (score * _copies(queries, q_rows)), fresh=loud),
        "k": axis_map(keys, k_rows, dual=1 / _copies(keys, k_rows), fresh=1.0),
    }


def _normed_heads(growth: Growth, placed: HeadPlacement, score: float) -> dict[str, AxisMap]:
    """Isometric copies of channels keep the mean square that a norm sees.

    Gains of new channels are 0 for queries and 1 for keys: scores stay as they are and both sides learn.
    """
    size, wider = growth.source["head_dim"], growth.target["head_dim"]
    full = growth.family.head_norm == "full"
    main = growth.channels
    spare = (main < 0).nonzero().flatten()
    copies = main.clone()
    copies[spare] = arange(len(spare)) % size
    axes: dict[str, AxisMap] = {}
    for name, heads, count in (
        ("q", placed.queries, growth.source["heads"]),
        ("k", placed.keys, growth.source["kv_heads"]),
    ):
        index = by_channel(heads, copies, size)
        many = _copies(index, count * size)
        if full:
            factor = (len(index) / (count * size * many)).sqrt()
        else:
            # one norm a head: copies inside a head count, copies of heads do not
            inside = _copies(copies, size).repeat(len(heads))
            factor = (wider / (size * inside)).sqrt()
        axes[name] = axis_map(index, count * size, scale=factor, dual=1 / (factor * many), fresh=1.0)
        gain = score if name == "q" else 1.0
        silent = 0.0 if name == "q" else 1.0
        if full:
            kept = by_channel(heads, main, size)
            axes[f"{name}.norm"] = axis_map(
                kept,
                count * size,
                scale=gain / factor,
                dual=factor / (gain * _copies(kept, count * size)),
                constant=silent,
            )
        else:
            per_head = (wider / (size * _copies(copies, size))).sqrt()
            axes[f"{name}.norm"] = axis_map(main, size, scale=gain / per_head, dual=per_head / gain, constant=silent)
    return axes


# --- feed-forward -------------------------------------------------------------------------------------------


def feed_forward_axes(growth: Growth) -> dict[str, AxisMap]:
    """New neurons: read at random and write nothing; or copies; or pairs that cancel."""
    old, new = growth.source["intermediate_size"], growth.target["intermediate_size"]
    if growth.strategy == "clone":
        index = arange(new) % old
        many = _copies(index, old)
        return {"ffn.in": axis_map(index, old, dual=1 / many), "ffn.out": axis_map(index, old, split=True)}
    reads, writes = appended(old, new, fresh=1.0), appended(old, new)
    if growth.strategy == "pairs" and new - old > 1:
        last = old + (new - old) // 2 * 2
        pair = filled(new, NEW)
        pair[old + 1 : last : 2] = arange(new)[old:last:2]
        loud = ((arange(new) >= old) & (arange(new) < last)).double()
        reads = replace(reads, pair=pair)
        writes = replace(writes, pair=pair, pair_sign=-1.0, fresh=loud)
    return {"ffn.in": reads, "ffn.out": writes}


# --- ELLE ---------------------------------------------------------------------------------------------------


def elle_axes(growth: Growth, generator: torch.Generator) -> dict[str, AxisMap]:
    """Random copies whose readers are divided by multiplicity; whole heads are copied. Not exact.

    Source: Qin et al. 2022 (ELLE), section 3.2, after bert2BERT's function-preserving initialisation.
    """
    source, target = growth.source, growth.target
    width, size = source["hidden_size"], source["head_dim"]
    stream = copied(width, target["hidden_size"], generator)
    many = _copies(stream, width)
    copy, share = axis_map(stream, width, dual=1 / many), axis_map(stream, width, scale=1 / many)
    ffn = copied(source["intermediate_size"], target["intermediate_size"], generator)
    neurons = _copies(ffn, source["intermediate_size"])
    old_group, group = source["heads"] // source["kv_heads"], target["heads"] // target["kv_heads"]
    keys = copied(source["kv_heads"], target["kv_heads"], generator)
    slots = arange(target["heads"])
    if source["heads"] == source["kv_heads"] and group == 1:
        queries = keys
    else:
        queries = keys[slots // group] * old_group + slots % group % old_group
    channels = torch.where(growth.channels < 0, 0, growth.channels)
    q, k = by_channel(queries, channels, size), by_channel(keys, channels, size)
    q_rows, k_rows = source["heads"] * size, source["kv_heads"] * size
    over_all = growth.family.head_norm == "full"
    axes = {f"stream.{side}": copy for side in ("write", "gain", "bias", "post", "norm", "mlm", "mlm_norm")}
    axes |= {f"stream.{side}": copy for side in ("final_gain", "final_bias")}
    if growth.tied:
        axes |= {f"stream.{side}": share for side in ("final_gain", "final_bias", "mlm_norm")}
    axes |= {
        "stream.read": share,
        "stream.head": share,
        "q": axis_map(q, q_rows),
        "k": axis_map(k, k_rows),
        "v": axis_map(k, k_rows),
        "o": axis_map(q, q_rows, scale=1 / _copies(q, q_rows)),
        "each_head": axis_map(queries, source["heads"]),
        "q.norm": axis_map(q, q_rows) if over_all else axis_map(channels, size),
        "k.norm": axis_map(k, k_rows) if over_all else axis_map(channels, size),
        "ffn.in": axis_map(ffn, source["intermediate_size"], dual=1 / neurons),
        "ffn.out": axis_map(ffn, source["intermediate_size"], scale=1 / neurons),
    }
    if "experts" in target:
        axes["experts"] = exact_axes(growth)["experts"]
    return axes | fixed_axes(growth)


# --- index maps ---------------------------------------------------------------------------------------------


def appended(old: int, new: int, *, fresh: float = 0.0) -> AxisMap:
    """Old coordinates first, new ones behind them."""
    return axis_map(torch.cat([arange(old), filled(new - old, NEW)]), old, fresh=fresh)


def copied(old: int, new: int, generator: torch.Generator) -> Tensor:
    """Old coordinates first, random copies of them behind."""
    return torch.cat([arange(old), torch.randint(0, old, (new - old,), generator=generator)])


def arange(count: int) -> Tensor:
    """`[count]` int64."""
    return torch.arange(count)


def filled(count: int, value: int) -> Tensor:
    """`[count]` int64, all the same."""
    return torch.full((count,), value, dtype=torch.long)


def _copies(index: Tensor, size: int) -> Tensor:
    """`[new]` float64: how many coordinates have the same source; 1 where new."""
    counts = torch.bincount(index[index >= 0], minlength=size).double()
    return torch.where(index >= 0, counts[index.clamp(min=0)], 1.0)
