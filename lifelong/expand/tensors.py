"""Tensor maps: how one parameter of the grown model is made from the old one, and how that acts on a tensor.

An old tensor W becomes W'[a, b] = r_a c_b W[i(a), j(b)] on entries whose rows and columns come from old ones;
every other entry is new. The same map carries what is attached to a weight: gradients and Adam's first moments
by its dual factors, second moments and importances by their squares.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong.expand.axes import MEAN, NEW, AxisMap

AT_ONCE = 1 << 15
SPLIT_SPREAD = 0.5
"""Standard deviation of the shares of clones: far enough from 1/n that shares of both signs occur."""


@dataclass(frozen=True)
class TensorMap:
    """Map from a parameter of the old model to one of the grown model.

    Attributes:
        name: parameter of the grown model.
        sources: old parameters, stacked along their rows; none if the parameter has no counterpart.
        axes: names of the axis maps, one per dimension.
        factor: factor on the weights; its inverse on gradients.
        offset: a stored value w means w + offset.
        std: scale of random new entries.
        value: every entry holds this (the output of an inserted layer is 0); None where entries are mapped.
        inserted: all entries are new: the parameter belongs to an inserted layer, or holds `value`.
        copy_noise: standard deviation of noise on copies (ELLE).
        share_noise: scale of noise that sums to zero over clones along the first axis (experts).
        buffer: no parameter, but stored with them: nothing trains it, and nothing is attached to it.
    """

    name: str
    sources: tuple[str, ...]
    axes: tuple[str, ...]
    factor: float = 1.0
    offset: float = 0.0
    std: float = 0.02
    value: float | None = None
    inserted: bool = False
    copy_noise: float = 0.0
    share_noise: float = 0.0
    buffer: bool = False


@dataclass(frozen=True)
class Draw:
    """Random numbers of one parameter: a function of the growth's seed and the parameter's name."""

    generator: np.random.Generator

    @classmethod
    def of(cls, seed: int, name: str) -> Draw:
        """The stream of parameter `name`."""
        return cls(np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())])))

    def normal(self, shape: Sequence[int], dtype: torch.dtype, std: float = 1.0) -> Tensor:
        """Normal values; the same in float32 and float64 up to rounding.

        16-bit ones are one of 65,536 quantiles each: that is finer than their format, and much faster. Four of a row
        are drawn by one number of 64 bits, and every row begins with a number of its own.
        """
        if dtype in (torch.bfloat16, torch.float16):
            many, each = math.prod(shape[:1]), math.prod(shape[1:])
            if not many * each:
                return torch.empty(*shape, dtype=dtype)
            table, words = _quantiles(dtype, std), _words(each)
            raw: np.ndarray[Any, np.dtype[np.uint64]] = self.generator.bit_generator.random_raw(many * words)
            places = raw.view(np.uint16)
            found = np.empty(len(places), np.int16)
            for start in range(0, len(places), AT_ONCE):  # indices take four times the room that they have here
                part = slice(start, start + AT_ONCE)
                np.take(table, places[part], out=found[part], mode="wrap")
            return torch.from_numpy(found).view(dtype).view(many, -1)[:, :each].reshape(*shape)
        drawn = self.generator.standard_normal(tuple(shape), dtype=np.float32)
        return torch.from_numpy(np.asarray(drawn)).to(dtype).mul_(std)

    def skip(self, many: int, each: int, dtype: torch.dtype) -> None:
        """Go on behind `many` rows of `each` values."""
        if dtype in (torch.bfloat16, torch.float16):
            self.generator.bit_generator.random_raw(many * _words(each), output=False)
            return
        count = many * each
        for start in range(0, count, AT_ONCE):
            self.generator.standard_normal(min(AT_ONCE, count - start), dtype=np.float32)


def _words(values: int) -> int:
    """Numbers of 64 bits that a row of 16-bit values takes."""
    return -(-values // 4)


@cache
def _quantiles(dtype: torch.dtype, std: float) -> np.ndarray[Any, np.dtype[np.int16]]:
    """The bits of 65,536 equally probable normal values."""
    levels = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    drawn = (torch.special.ndtri(levels) * std).to(dtype)
    values: np.ndarray[Any, np.dtype[np.int16]] = drawn.view(torch.int16).numpy()
    return values


def grow_weight(mapping: TensorMap, sources: Sequence[Tensor], axes: Sequence[AxisMap], seed: int) -> Tensor:
    """The grown parameter, in the dtype of the old one; computed in float32 or, for float64 weights, in float64.

    A parameter that stays as it is may be the old tensor itself.
    """
    dtype = sources[0].dtype if sources else torch.float32
    shape = [len(axis.source) for axis in axes]
    if mapping.value is not None:
        return torch.full(shape, mapping.value - mapping.offset, dtype=dtype)
    draw = Draw.of(seed, mapping.name)
    if not sources:
        return draw.normal(shape, dtype, mapping.std)
    working = _working_dtype(mapping, axes, dtype)
    return _grown(mapping, _stacked(sources, len(shape)), axes, [draw] * len(axes), working)


def _working_dtype(mapping: TensorMap, axes: Sequence[AxisMap], dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 or is_plain(mapping, axes) else torch.float32


def _grown(
    mapping: TensorMap, value: Tensor, axes: Sequence[AxisMap], draws: Sequence[Draw], working: torch.dtype
) -> Tensor:
    """The grown parameter from old values; `draws` holds the random numbers of the new coordinates of every axis."""
    if all(axis.is_identity for axis in axes) and mapping.factor == 1 and not mapping.copy_noise:
        return value
    dtype, value = value.dtype, value.to(working)
    if mapping.offset:
        value = value + mapping.offset
    grown = _spread(value, axes, [axis.scale for axis in axes], draws[0] if _has_shares(axes) else None, mapping)
    _fill(grown, axes, mapping, draws)
    if mapping.factor != 1:
        # new entries keep their own value: the factor belongs to old ones
        old = _old_block(axes)
        _assign(grown, old, _block(grown, old) * mapping.factor)
    if mapping.offset:
        grown -= mapping.offset
    return grown.to(dtype)


Rows = Callable[[int, int], Tensor]
"""Old rows from one number to another."""


def grow_rows(
    mapping: TensorMap, rows: Rows, axes: Sequence[AxisMap], seed: int, *, dtype: torch.dtype, most_bytes: int
) -> Iterator[Tensor] | None:
    """The grown parameter in blocks of rows of at most `most_bytes` (or one row), the same bits as `grow_weight`.

    Every block is made from the old rows that it needs: it stays in the processor's cache, and memory does not depend
    on the size of the parameter. None where rows depend on each other (means, shares of clones, pairs of rows), or
    are not those of one old parameter.
    """
    working = _working_dtype(mapping, axes, dtype)
    counts = _drawn(axes)
    if not _has_own_rows(mapping, axes):
        return None
    draws = [Draw.of(seed, mapping.name) for _ in axes]
    for dim, (many, each) in enumerate(counts):
        for later in draws[dim + 1 :]:
            later.skip(many, each, working)
    row_bytes = math.prod(len(axis.source) for axis in axes[1:]) * working.itemsize
    step = max(1, most_bytes // row_bytes)
    if working == dtype and (pieces := _pieces(mapping, axes)) is not None:
        return _moved(rows, *pieces, draws, mapping.std, dtype, step)

    def block(start: int, stop: int) -> Tensor:
        first = axes[0].rows(start, stop)
        old = first.source[first.is_old]
        low, high = (int(old.min()), int(old.max()) + 1) if len(old) else (0, 0)
        moved = replace(first, source=torch.where(first.is_old, first.source - low, first.source), size=high - low)
        return _grown(mapping, rows(low, high), (moved, *axes[1:]), draws, working)

    total = len(axes[0].source)
    return (block(start, min(start + step, total)) for start in range(0, total, step))


@dataclass(frozen=True)
class Piece:
    """Neighbouring coordinates of an axis that come from neighbouring old ones, from `source` on, or are all new."""

    start: int
    stop: int
    source: int
    loud: bool

    @property
    def is_old(self) -> bool:
        """Whether they come from old ones."""
        return self.source >= 0

    @property
    def place(self) -> slice:
        """Where they are."""
        return slice(self.start, self.stop)


def _pieces(mapping: TensorMap, axes: Sequence[AxisMap]) -> tuple[list[Piece], list[Piece]] | None:
    """Rows and columns of a matrix by pieces; None where old entries are more than moved, or the pieces are many."""
    if len(axes) != 2 or not is_plain(mapping, axes) or any(axis.pair is not None for axis in axes):
        return None
    if any(bool(((axis.fresh != 0) & (axis.fresh != 1))[axis.source == NEW].any()) for axis in axes):
        return None
    found = [_cut(axis) for axis in axes]
    return (found[0], found[1]) if max(map(len, found)) <= MANY_RUNS else None


def _cut(axis: AxisMap) -> list[Piece]:
    loud = (axis.source == NEW) & (axis.fresh > 0)
    goes_on = (axis.source.diff() == 1) & axis.is_old[:-1] | (axis.source.diff() == 0) & ~axis.is_old[1:]
    goes_on &= loud[1:] == loud[:-1]
    edges = [0, *((~goes_on).nonzero().flatten() + 1).tolist(), len(axis.source)]
    return [Piece(low, high, int(axis.source[low]), bool(loud[low])) for low, high in itertools.pairwise(edges)]


def _moved(
    rows: Rows,
    cut: list[Piece],
    columns: list[Piece],
    draws: Sequence[Draw],
    std: float,
    dtype: torch.dtype,
    step: int,
) -> Iterator[Tensor]:
    """Blocks of a parameter whose old entries are only moved: what `_grown` makes, without its looks at every axis."""
    for piece in cut:
        for start in range(piece.start, piece.stop, step):
            many = min(step, piece.stop - start)
            if piece.is_old:
                first = piece.source + start - piece.start
                yield _beside(rows(first, first + many), columns, draws[1], std)
            elif piece.loud:
                grown = draws[0].normal((many, columns[-1].stop), dtype, std)
                for column in columns:
                    if not column.is_old and not column.loud:
                        grown[:, column.place] *= 0
                yield grown
            else:
                yield torch.zeros((many, columns[-1].stop), dtype=dtype)


def _beside(old: Tensor, columns: list[Piece], draw: Draw, std: float) -> Tensor:
    """Old rows with their new columns."""
    if len(columns) == 1 and columns[0].source == 0 and columns[0].stop == old.shape[1]:
        return old
    grown, used = torch.empty((len(old), columns[-1].stop), dtype=old.dtype), 0
    new = draw.normal((len(old), sum(c.stop - c.start for c in columns if c.loud)), old.dtype, std)
    for column in columns:
        size = column.stop - column.start
        if column.is_old:
            grown[:, column.place] = old[:, column.source : column.source + size]
        elif column.loud:
            grown[:, column.place] = new[:, used : used + size]
            used += size
        else:
            grown[:, column.place] = 0
    return grown


def _has_own_rows(mapping: TensorMap, axes: Sequence[AxisMap]) -> bool:
    """Whether every row of the grown parameter follows from rows of one old parameter, by itself."""
    if len(mapping.sources) != 1 or len(axes) < 2 or mapping.value is not None:
        return False
    if len(axes) > 2 and axes[0].size == 1:  # a dense layer that becomes the first expert has a dimension less
        return False
    means = any(bool(((axis.source == MEAN) & (axis.fresh > 0)).any()) for axis in axes)
    noise = mapping.copy_noise or (mapping.share_noise and not axes[0].is_identity)
    first = bool((axes[0].source == MEAN).any()) or axes[0].pair is not None
    return not (means or noise or first or _has_shares(axes))


def _drawn(axes: Sequence[AxisMap]) -> list[tuple[int, int]]:
    """Random numbers of new coordinates, axis by axis: rows that have some, and how many a row."""
    rest = [len(axis.source) for axis in axes]
    counts = []
    for dim, axis in enumerate(axes):
        new = axis.source == NEW
        sizes = [*rest]
        sizes[dim] = int((new & (axis.fresh > 0)).sum())
        counts.append((sizes[0], math.prod(sizes[1:])))
        rest[dim] -= int(new.sum())
    return counts


def is_plain(mapping: TensorMap, axes: Sequence[AxisMap]) -> bool:
    """Whether old entries are only moved: nothing is computed, so that nothing has to be rounded again."""
    computed = mapping.offset or mapping.factor != 1 or mapping.copy_noise or mapping.share_noise or _has_shares(axes)
    return not computed and not any(bool((axis.source == MEAN).any() or (axis.scale != 1).any()) for axis in axes)


def grow_gradient(
    mapping: TensorMap, sources: Sequence[Tensor], axes: Sequence[AxisMap], *, power: int = 1, fill: float | str = 0.0
) -> Tensor:
    """Carry a quantity attached to a gradient over to the grown parameter.

    `power` 1 for gradients and first moments, 2 for second moments and importances. New entries hold `fill`; for
    `mean` the mean of the old entries: a zero second moment with an old step count has no bias correction, and
    the first update would be (1 - beta1) / sqrt(1 - beta2) times the learning rate.
    """
    value = _stacked(sources, len(axes))
    duals = [axis.dual**power for axis in axes]
    grown = _spread(value, axes, duals, None, None) / (mapping.factor or 1.0) ** power
    is_new = new_entries(mapping, axes)
    rest = ~is_new if not mapping.inserted else _outer([axis.is_old for axis in axes])
    kept = grown[rest]
    number = (float(kept.mean()) if len(kept) else 0.0) if fill == "mean" else float(fill)
    copies = is_new & _outer([axis.is_old for axis in axes]) & (not mapping.inserted)
    return torch.where(is_new & ~copies, torch.full((), number, dtype=grown.dtype), grown)


def new_entries(mapping: TensorMap, axes: Sequence[AxisMap]) -> Tensor:
    """Bool, true where the grown parameter is not one old entry moved and scaled: new, mean, or a further copy."""
    shape = [len(axis.source) for axis in axes]
    if mapping.inserted or not mapping.sources:
        return torch.ones(shape, dtype=torch.bool)
    return ~_outer([axis.is_old & ~axis.is_copy for axis in axes])


def _outer(masks: Sequence[Tensor]) -> Tensor:
    result = torch.ones((), dtype=torch.bool)
    for dim, mask in enumerate(masks):
        result = result.unsqueeze(-1) & mask if dim else mask
    return result


def _stacked(sources: Sequence[Tensor], dims: int) -> Tensor:
    value = sources[0] if len(sources) == 1 else torch.cat(list(sources))
    return value.unsqueeze(0) if value.dim() < dims else value  # one dense feed-forward layer is one expert


def _has_shares(axes: Sequence[AxisMap]) -> bool:
    return any(axis.split for axis in axes)


Part = slice | Tensor
MANY_RUNS = 64


def _places(mask: Tensor) -> Part:
    """Where a mask is true, as a slice when that is one run."""
    index = mask.nonzero().flatten()
    if len(index) and int(index[-1]) - int(index[0]) + 1 == len(index):
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def _length(part: Part) -> int:
    return part.stop - part.start if isinstance(part, slice) else len(part)


def _old_block(axes: Sequence[AxisMap]) -> list[Part]:
    return [_places(axis.source != NEW) for axis in axes]


def _block(value: Tensor, parts: Sequence[Part]) -> Tensor:
    for dim, part in enumerate(parts):
        value = value.narrow(dim, part.start, part.stop - part.start) if isinstance(part, slice) else (
            value.index_select(dim, part)
        )  # fmt: skip
    return value


def _assign(grown: Tensor, parts: Sequence[Part], block: Tensor) -> None:
    runs = [_runs(part) for part in parts]
    if math.prod(len(run) for run in runs) > MANY_RUNS:
        index = [torch.arange(part.start, part.stop) if isinstance(part, slice) else part for part in parts]
        grown[torch.meshgrid(*index, indexing="ij")] = block
        return
    for chosen in itertools.product(*runs):  # a few slices are far faster than an index of every entry
        grown[tuple(place for place, _ in chosen)] = block[tuple(source for _, source in chosen)]


def _runs(part: Part) -> list[tuple[slice, slice]]:
    """Runs of neighbouring places: where they are in the whole, and where in the block."""
    if isinstance(part, slice):
        return [(part, slice(0, part.stop - part.start))]
    edges = [0, *((part.diff() != 1).nonzero().flatten() + 1).tolist(), len(part)]
    return [
        (slice(int(part[low]), int(part[high - 1]) + 1), slice(low, high))
        for low, high in itertools.pairwise(edges)
        if high > low
    ]


def _spread(
    value: Tensor, axes: Sequence[AxisMap], factors: Sequence[Tensor], draw: Draw | None, mapping: TensorMap | None
) -> Tensor:
    """Old entries at their new places, times the factors; zeros elsewhere, or anything where a weight is made."""
    for dim, axis in enumerate(axes):
        if bool((axis.source == MEAN).any()):
            value = torch.cat([value, value.mean(dim, keepdim=True)], dim)
    parts = _old_block(axes)
    for dim, (axis, part) in enumerate(zip(axes, parts, strict=True)):
        source = axis.source[part]
        wanted = torch.where(source == MEAN, axis.size, source)
        if torch.equal(wanted, torch.arange(len(wanted))):
            value = value.narrow(dim, 0, len(wanted))
        else:
            value = value.index_select(dim, wanted)
    for dim, (axis, part) in enumerate(zip(axes, parts, strict=True)):
        if draw is not None and axis.split and mapping is not None:
            value = _shared(value, dim, axis.source[part], draw, mapping.std)
    along = [factor[part].to(value.dtype) for factor, part in zip(factors, parts, strict=True)]
    scales = [f.view([-1 if i == dim else 1 for i in range(value.dim())]) for dim, f in enumerate(along)]
    scales = [scale for scale in scales if not bool((scale == 1).all())]
    shape = [len(axis.source) for axis in axes]
    if list(value.shape) == shape:
        grown = value * scales[0] if scales else value.clone(memory_format=torch.contiguous_format)
        for scale in scales[1:]:
            grown *= scale
        return grown
    # of a weight every entry is written by what follows: a pass over memory less
    grown = (torch.zeros if mapping is None else torch.empty)(shape, dtype=value.dtype)
    if scales and not value.requires_grad and all(isinstance(part, slice) for part in parts):
        block = grown[tuple(parts)]
        torch.mul(value, scales[0], out=block)  # one pass over memory instead of two
        for scale in scales[1:]:
            block *= scale
        return grown
    for scale in scales:
        value = value * scale
    _assign(grown, parts, value)
    return grown


def _shared(value: Tensor, dim: int, source: Tensor, draw: Draw, std: float) -> Tensor:
    """Clones along `dim` share the weight of what they copy: shares sum to one, noise on top sums to zero."""
    groups, counts = torch.unique(source, return_inverse=True, return_counts=True)[1:]
    if bool((counts == 1).all()):
        return value
    shape = [-1 if i == dim else 1 for i in range(value.dim())]
    many = counts[groups].to(value.dtype).view(shape)

    def centred(drawn: Tensor) -> Tensor:
        sums = torch.zeros([len(counts) if i == dim else n for i, n in enumerate(value.shape)], dtype=value.dtype)
        centre: Tensor = sums.index_add_(dim, groups, drawn).index_select(dim, groups) / many
        return drawn - centre

    shares = 1 / many + SPLIT_SPREAD * centred(draw.normal(value.shape, value.dtype))
    shared: Tensor = value * shares + 0.1 * std * centred(draw.normal(value.shape, value.dtype))
    return shared


def _fill(grown: Tensor, axes: Sequence[AxisMap], mapping: TensorMap, draws: Sequence[Draw]) -> None:
    """Write the new entries into `grown`."""
    draw = draws[0]
    if grown.dim() == 1:
        new = axes[0].source == NEW
        grown[new] = axes[0].constant[new].to(grown.dtype)
    else:
        _fill_matrix(grown, axes, mapping.std, draws)
    for dim, axis in enumerate(axes):
        if axis.pair is not None:
            second = (axis.pair >= 0).nonzero().flatten()
            twins = grown.index_select(dim, axis.pair[second]) * axis.pair_sign
            grown.index_copy_(dim, second, twins)
        if grown.dim() > 1 and bool((axis.source == MEAN).any()) and bool((axis.fresh[axis.source == MEAN] > 0).any()):
            mean = (axis.source == MEAN).nonzero().flatten()
            noise = draw.normal(grown.index_select(dim, mean).shape, grown.dtype) * mapping.std
            noise *= axis.fresh[mean].to(grown.dtype).view([-1 if i == dim else 1 for i in range(grown.dim())])
            grown.index_add_(dim, mean, noise)
    if mapping.copy_noise:
        copies = ~_outer([~axis.is_copy for axis in axes])
        grown += torch.where(copies, draw.normal(grown.shape, grown.dtype) * mapping.copy_noise, torch.zeros(()))
    if mapping.share_noise and not axes[0].is_identity:
        _add_zero_sum_noise(grown, axes, mapping, draw)


def _fill_matrix(grown: Tensor, axes: Sequence[AxisMap], std: float, draws: Sequence[Draw]) -> None:
    """Random numbers where every new coordinate of an entry may be random, block by block; zeros elsewhere."""
    done: list[Part] = [slice(0, n) for n in grown.shape]
    for dim, axis in enumerate(axes):
        new = axis.source == NEW
        loud = new & (axis.fresh > 0)
        if bool(loud.any()):
            parts = list(done)
            parts[dim] = _places(loud)
            factors = [_loudness(a)[p] for a, p in zip(axes, parts, strict=True)]
            shape = [len(f) for f in factors]
            block = draws[dim].normal(shape, grown.dtype, std)
            for i, factor in enumerate(factors):
                if not bool((factor == 1).all()):
                    block *= factor.to(grown.dtype).view([-1 if j == i else 1 for j in range(len(factors))])
            _assign(grown, parts, block)
        if bool(new.any()):
            silent = list(done)
            silent[dim] = _places(new & ~loud)
            _assign(grown, silent, torch.zeros((), dtype=grown.dtype).expand(*map(_length, silent)))
            done[dim] = _places(~new)


def _loudness(axis: AxisMap) -> Tensor:
    """Factor of random entries along an axis: 1 where the coordinate is old."""
    return torch.where(axis.source == NEW, axis.fresh, torch.ones_like(axis.fresh))


def _add_zero_sum_noise(grown: Tensor, axes: Sequence[AxisMap], mapping: TensorMap, draw: Draw) -> None:
    """Clones along the first dimension differ, their sum does not; what new neurons write stays silent."""
    axis, groups = axes[0], axes[0].source
    noise = draw.normal(grown.shape, grown.dtype) * (mapping.share_noise * mapping.std)
    noise *= _outer([torch.ones_like(axis.is_old), *(a.is_old for a in axes[1:])])
    sums = torch.zeros([axis.size, *grown.shape[1:]], dtype=grown.dtype).index_add_(0, groups, noise)
    many = axis.counts[groups].to(grown.dtype).view([-1] + [1] * (grown.dim() - 1))
    grown += noise - sums.index_select(0, groups) / many
