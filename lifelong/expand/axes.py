"""Index maps: where the coordinates of one axis of a grown model come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

NEW, MEAN = -1, -2


@dataclass(frozen=True)
class AxisMap:
    """Index map of one axis: where its coordinates come from.

    Attributes:
        source: `[new]` int64: old coordinate, NEW, or MEAN of all old coordinates.
        size: number of old coordinates.
        scale: `[new]` float64: factor on weights.
        dual: `[new]` float64: factor on gradients.
        fresh: `[new]` float64: new entries are random with this multiple of the initial scale; 0 is silent.
        constant: `[new]` float64: value of new entries of vectors.
        split: coordinates that copy the same old one share its weight; shares are drawn for every entry.
        pair: `[new]` int64: this new coordinate repeats that one (NEW: none), times `pair_sign`.
        pair_sign: +1 on the side that reads, -1 on the side that writes.
    """

    source: Tensor
    size: int
    scale: Tensor
    dual: Tensor
    fresh: Tensor
    constant: Tensor
    split: bool = False
    pair: Tensor | None = None
    pair_sign: float = 1.0

    @property
    def is_old(self) -> Tensor:
        """`[new]` bool: the coordinate is old or a copy of an old one."""
        return self.source >= 0

    @property
    def is_copy(self) -> Tensor:
        """`[new]` bool: a coordinate before this one has the same source."""
        first = torch.full((self.size,), len(self.source), dtype=torch.long)
        old = self.is_old
        places = torch.arange(len(self.source))
        first.scatter_reduce_(0, self.source[old], places[old], "amin")
        return old & (places != first[self.source.clamp(min=0)])

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes along this axis."""
        same = len(self.source) == self.size and torch.equal(self.source, torch.arange(self.size))
        return same and bool((self.scale == 1).all())

    def rows(self, start: int, stop: int) -> AxisMap:
        """The map of some of the new coordinates."""
        parts = {name: getattr(self, name)[start:stop] for name in ("source", "scale", "dual", "fresh", "constant")}
        return replace(self, **parts)

    @property
    def counts(self) -> Tensor:
        """`[old]` float64: number of coordinates made from each old one."""
        return torch.bincount(self.source[self.is_old], minlength=self.size).double()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; arrays as runs."""
        data: dict[str, Any] = {"size": self.size, "source": _steps(self.source), "split": self.split}
        for name in ("scale", "dual", "fresh", "constant"):
            data[name] = _runs(getattr(self, name))
        if self.pair is not None:
            data |= {"pair": _steps(self.pair), "pair_sign": self.pair_sign}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AxisMap:
        """Inverse of `to_json`."""
        values = {name: _unrun(data[name]) for name in ("scale", "dual", "fresh", "constant")}
        pair = _unstep(data["pair"]) if "pair" in data else None
        return cls(
            _unstep(data["source"]), data["size"], **values, split=data["split"],
            pair=pair, pair_sign=data.get("pair_sign", 1.0),
        )  # fmt: skip


def axis_map(
    source: Tensor,
    size: int,
    *,
    scale: Tensor | float = 1.0,
    dual: Tensor | float = 1.0,
    fresh: Tensor | float = 0.0,
    constant: Tensor | float = 0.0,
    split: bool = False,
) -> AxisMap:
    """An `AxisMap` from numbers or vectors."""

    def vector(value: Tensor | float) -> Tensor:
        given = torch.as_tensor(value, dtype=torch.float64)
        return given.expand(len(source)).clone() if given.dim() == 0 else given

    return AxisMap(source.long(), size, vector(scale), vector(dual), vector(fresh), vector(constant), split)


def concatenated(maps: Sequence[AxisMap]) -> AxisMap:
    """The map of an axis on which several stand one behind the other."""
    if len(maps) == 1:
        return maps[0]
    offsets = [sum(m.size for m in maps[:i]) for i in range(len(maps))]
    starts = [sum(len(m.source) for m in maps[:i]) for i in range(len(maps))]
    pair = None
    if any(m.pair is not None for m in maps):
        none = [torch.full((len(m.source),), NEW) if m.pair is None else m.pair for m in maps]
        pair = torch.cat([torch.where(p < 0, p, p + start) for p, start in zip(none, starts, strict=True)])
    return AxisMap(
        torch.cat([torch.where(m.source < 0, m.source, m.source + o) for m, o in zip(maps, offsets, strict=True)]),
        sum(m.size for m in maps),
        torch.cat([m.scale for m in maps]),
        torch.cat([m.dual for m in maps]),
        torch.cat([m.fresh for m in maps]),
        torch.cat([m.constant for m in maps]),
        split=any(m.split for m in maps),
        pair=pair,
        pair_sign=maps[0].pair_sign,
    )


def permuted(axis: AxisMap, old: Tensor, new: Tensor) -> AxisMap:
    """The same map when old coordinate `old[i]` is stored at place i, and new coordinate `new[j]` at place j."""
    place = torch.empty_like(old)
    place[old] = torch.arange(len(old))
    source = axis.source[new]
    pair = None
    if axis.pair is not None:
        at = torch.empty_like(new)
        at[new] = torch.arange(len(new))
        pair = torch.where(axis.pair < 0, axis.pair, at[axis.pair.clamp(min=0)])[new]
    parts = {name: getattr(axis, name)[new] for name in ("scale", "dual", "fresh", "constant")}
    return AxisMap(
        torch.where(source < 0, source, place[source.clamp(min=0)]), axis.size, **parts, split=axis.split, pair=pair,
        pair_sign=axis.pair_sign,
    )  # fmt: skip


def _runs(values: Tensor) -> list[list[float]]:
    runs: list[list[float]] = []
    for value in values.tolist():
        if runs and (runs[-1][0] == value or (math.isnan(value) and math.isnan(runs[-1][0]))):
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return runs


def _unrun(runs: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([value for value, count in runs for _ in range(int(count))], dtype=torch.float64)


def _steps(values: Tensor) -> list[list[int]]:
    """Runs of [first, count, step] with step 0 or 1."""
    runs: list[list[int]] = []
    for value in values.tolist():
        if runs:
            first, count, step = runs[-1]
            if count == 1 and value - first in (0, 1):
                runs[-1] = [first, 2, value - first]
                continue
            if count > 1 and value == first + count * step:
                runs[-1][1] += 1
                continue
        runs.append([value, 1, 0])
    return runs


def _unstep(runs: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([first + i * step for first, count, step in runs for i in range(count)], dtype=torch.long)
