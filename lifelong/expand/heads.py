"""Placement of query and key-value heads, so that every old query head keeps its own keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong.expand.axes import NEW


@dataclass(frozen=True)
class HeadPlacement:
    """Old head of every new one, or NEW.

    `queries` `[H']`, `keys` `[KV']`; `outputs` `[H']` is `queries` with NEW where a copy's output is silent.
    """

    queries: Tensor
    keys: Tensor
    outputs: Tensor


def place_heads(source: Mapping[str, int], target: Mapping[str, int], *, fill: str) -> HeadPlacement:
    """Give every old key-value head as many new groups as its query heads need; `fill` says what the rest is.

    Args:
        source: sizes of the old model.
        target: sizes of the new one.
        fill: `new` (random heads, silent outputs), `copy` (silent copies, for norms over all heads) or `clone`
            (copies that share their original's output).
    """
    old_group, group = source["heads"] // source["kv_heads"], target["heads"] // target["kv_heads"]
    queries, keys = [NEW] * target["heads"], [NEW] * target["kv_heads"]
    slot = 0
    for old in range(source["kv_heads"]):
        for start in range(old * old_group, (old + 1) * old_group, group):
            placed = range(start, min(start + group, (old + 1) * old_group))
            if slot == len(keys):  # only reached where the placement is approximate
                break
            keys[slot] = old
            queries[slot * group : slot * group + len(placed)] = placed
            slot += 1
    outputs = list(queries)
    if fill != "new":
        for j in range(len(keys)):
            keys[j] = keys[j] if keys[j] != NEW else j % source["kv_heads"]
        for j in range(len(queries)):
            if queries[j] == NEW:
                queries[j] = keys[j // group] * old_group + j % group % old_group
        if fill == "clone":
            outputs = list(queries)
    return HeadPlacement(torch.tensor(queries), torch.tensor(keys), torch.tensor(outputs))


def by_channel(heads: Tensor, channels: Tensor, size: int) -> Tensor:
    """Map of heads and map of the channels inside a head -> map of all channels; `size` is the old head size."""
    both = heads[:, None] * size + channels
    return torch.where((heads[:, None] < 0) | (channels < 0), NEW, both).reshape(-1)
