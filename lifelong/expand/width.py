"""How the coordinates of one axis map from the small to the grown model.

`source[j]` is the old coordinate that new coordinate j copies, -1 where it is new. Every part of an axis
(write, read, norm, ...) has its own factor on copied entries and its own rule for new ones.

Source: the scaled zero-pad of the residual stream keeps mean(x^2), and with it RMSNorm and its epsilon: with
s = sqrt(D/d), x' = [s x; 0]. Growth operators: Gesmundo & Maile 2023 (arXiv 2308.06103), with the RMS rescale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class AxisMap:
    """One axis: which old coordinate each new one copies, and factors per part (`[new]` or scalar).

    `fill` says what new entries hold, per part: `random`, `zero` or `one`.
    """

    source: Tensor
    factors: Mapping[str, Tensor | float] = field(default_factory=dict)
    fill: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_new(self) -> Tensor:
        """`[new]` bool: the coordinate copies nothing."""
        return self.source < 0

    @property
    def is_copy(self) -> Tensor:
        """`[new]` bool: another coordinate before it copies the same old one."""
        places = torch.arange(len(self.source))
        first = torch.full((int(self.source.max()) + 2,), len(self.source)).scatter_reduce(
            0, self.source + 1, places, "amin"
        )
        return (places != first[self.source + 1]) & ~self.is_new

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        factors = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in self.factors.items()}
        return {"source": self.source.tolist(), "factors": factors, "fill": dict(self.fill)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AxisMap:
        """Inverse of `to_json`."""
        factors = {
            k: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v for k, v in data["factors"].items()
        }
        return cls(torch.tensor(data["source"], dtype=torch.long), factors, data["fill"])


def exact_maps(source: Mapping[str, int], target: Mapping[str, int], *, tied: bool) -> dict[str, AxisMap]:
    """Axis maps that keep the function: new units read at random and write zero."""
    scale = math.sqrt(target["hidden_size"] / source["hidden_size"])
    channels = target["head_dim"]
    heads, kv = place_heads(source, target)
    return {
        "stream": AxisMap(
            appended(source["hidden_size"], target["hidden_size"]),
            {"write": scale, "norm": 1 / scale, "final_norm": 1 / scale**2 if tied else 1 / scale},
            {"write": "zero", "read": "random", "norm": "one", "final_norm": "one"},
        ),
        "heads": AxisMap(by_channel(heads, channels), {}, {"project": "random", "out": "zero"}),
        "kv": AxisMap(by_channel(kv, channels), {}, {"project": "random"}),
        "ffn": AxisMap(
            appended(source["intermediate_size"], target["intermediate_size"]),
            {},
            {"project": "random", "out": "zero"},
        ),
        "vocab": AxisMap(appended(source["vocab_size"], target["vocab_size"]), {}, {"token": "random"}),
        "head": AxisMap(torch.arange(channels)),
    }


def elle_maps(source: Mapping[str, int], target: Mapping[str, int], generator: torch.Generator) -> dict[str, AxisMap]:
    """Random copies whose readers are divided by multiplicity; whole heads are copied. Not exact.

    Source: Qin et al. 2022 (ELLE), section 3.2, after bert2BERT's function-preserving initialisation.
    """
    channels = target["head_dim"]
    stream = copied(source["hidden_size"], target["hidden_size"], generator)
    ffn = copied(source["intermediate_size"], target["intermediate_size"], generator)
    kv = copied(source["kv_heads"], target["kv_heads"], generator)
    group = target["heads"] // target["kv_heads"]
    old_group = source["heads"] // source["kv_heads"]
    heads = torch.tensor([int(kv[j // group]) * old_group + (j % group) % old_group for j in range(target["heads"])])
    return {
        "stream": AxisMap(stream, {"read": split(stream)}, {}),
        "heads": AxisMap(by_channel(heads, channels), {"out": split(heads).repeat_interleave(channels)}, {}),
        "kv": AxisMap(by_channel(kv, channels), {}, {}),
        "ffn": AxisMap(ffn, {"out": split(ffn)}, {}),
        "vocab": AxisMap(appended(source["vocab_size"], target["vocab_size"]), {}, {"token": "random"}),
        "head": AxisMap(torch.arange(channels)),
    }


def appended(old: int, new: int) -> Tensor:
    """Old coordinates first, new ones behind them."""
    return torch.cat([torch.arange(old), torch.full((new - old,), -1, dtype=torch.long)])


def copied(old: int, new: int, generator: torch.Generator) -> Tensor:
    """Old coordinates first, random copies of them behind."""
    return torch.cat([torch.arange(old), torch.randint(0, old, (new - old,), generator=generator)])


def split(source: Tensor) -> Tensor:
    """One over the number of copies of the same old coordinate, `[new]` float64."""
    return 1.0 / torch.bincount(source)[source].double()


def by_channel(heads: Tensor, channels: int) -> Tensor:
    """Map of heads -> map of their channels."""
    offsets = torch.arange(channels)
    return torch.where(heads[:, None] < 0, -1, heads[:, None] * channels + offsets).reshape(-1)


def place_heads(source: Mapping[str, int], target: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Where query and key-value heads go, so that every old query head keeps its own key-value head.

    An old key-value head gets as many new groups as its query heads need; what remains is new.
    """
    old_group, group = source["heads"] // source["kv_heads"], target["heads"] // target["kv_heads"]
    heads, kv = [], []
    for old in range(source["kv_heads"]):
        members = list(range(old * old_group, (old + 1) * old_group))
        for start in range(0, old_group, group):
            placed = members[start : start + group]
            heads += placed + [-1] * (group - len(placed))
            kv.append(old)
    heads += [-1] * (target["heads"] - len(heads))
    kv += [-1] * (target["kv_heads"] - len(kv))
    return torch.tensor(heads), torch.tensor(kv)
