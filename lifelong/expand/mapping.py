"""One map per growth: it makes the grown weights, and carries everything attached to the old ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lifelong.errors import ExpansionError
from lifelong.expand.axes import NEW, AxisMap, axis_map, concatenated, permuted
from lifelong.expand.depth import Layer, chain_gains
from lifelong.expand.family import Family, Parameter
from lifelong.expand.lazy import body_prefix, buffer_names, stored_shapes, tied_names
from lifelong.expand.plan import ExpansionPlan
from lifelong.expand.tensors import TensorMap, grow_gradient, grow_rows, grow_weight, is_plain, new_entries
from lifelong.expand.width import Growth, elle_axes, exact_axes

ELLE_NOISE = 0.01
EXPERT_NOISE = 0.5
SIDES = {
    "embedding": "write", "reader": "read", "writer": "write", "writer_bias": "write", "pre_norm": "gain",
    "pre_norm_bias": "bias", "final_norm": "final_gain", "final_norm_bias": "final_bias", "post_norm": "post",
    "stream_norm": "norm", "stream_norm_bias": "norm", "head": "head", "mlm_dense": "mlm", "mlm_dense_bias": "mlm",
    "mlm_norm": "mlm_norm", "mlm_norm_bias": "mlm_norm", "router": "read", "task_head": "head",
}  # fmt: skip


@dataclass(frozen=True)
class ExpansionMap:
    """The linear map from every old parameter to its grown one, and its dual on gradients.

    Attributes:
        axes: axis maps by name.
        tensors: parameter maps by the name of the grown parameter.
        seed: of new entries.
    """

    axes: Mapping[str, AxisMap]
    tensors: Mapping[str, TensorMap]
    seed: int

    def axes_of(self, mapping: TensorMap) -> list[AxisMap]:
        """The axis maps of a parameter, one per dimension."""
        return [self.axes[name] for name in mapping.axes]

    def weight(self, name: str, weights: Mapping[str, Tensor]) -> Tensor:
        """One grown parameter; `weights` need to hold its sources only. One that stays may be the old tensor itself.

        Raises:
            ExpansionError: a value is not finite.
        """
        mapping = self.tensors[name]
        sources = [_finite(source, weights[source]) for source in mapping.sources]
        return grow_weight(mapping, sources, self.axes_of(mapping), self.seed)

    def weight_rows(
        self, name: str, rows: Callable[[str, int, int], Tensor], dtype: torch.dtype, *, most_bytes: int
    ) -> Iterator[Tensor] | None:
        """The same parameter in blocks of rows of at most `most_bytes`, where rows follow from old rows alone.

        Args:
            name: of the grown parameter.
            rows: gives rows of an old parameter, from one number to another.
            dtype: of the old parameter.
            most_bytes: of a block.

        Raises:
            ExpansionError: a value is not finite.
        """
        mapping = self.tensors[name]
        old = mapping.sources[0] if mapping.sources else ""

        def part(start: int, stop: int) -> Tensor:
            return _finite(old, rows(old, start, stop))

        return grow_rows(mapping, part, self.axes_of(mapping), self.seed, dtype=dtype, most_bytes=most_bytes)

    def only_moves(self, name: str) -> bool:
        """Whether old entries of a parameter are as they were, bit for bit, wherever they stand."""
        return is_plain(self.tensors[name], self.axes_of(self.tensors[name]))

    def apply_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Grown tensors by parameter name: of the model, of averaged weights, of anchors of the old weights.

        Buffers need not be among `weights`.

        Raises:
            ExpansionError: a value is not finite.
        """
        grown = {}
        for name, mapping in self.tensors.items():
            if mapping.buffer and not all(source in weights for source in mapping.sources):
                continue
            value = self.weight(name, weights)
            dtype = next(iter(weights.values())).dtype if not mapping.sources else value.dtype
            same = any(value is weights[source] for source in mapping.sources)
            grown[name] = value.to(dtype, copy=same)
        return grown

    def apply_gradients(
        self, values: Mapping[str, Tensor], *, power: int = 1, fill: float | str = 0.0
    ) -> dict[str, Tensor]:
        """Grow a quantity attached to gradients.

        Args:
            values: by old parameter name: gradients, first moments (`power` 1); second moments, Fisher information
                (`power` 2); absolute gradients (`power` 1: all factors are positive or enter by their size).
            power: of the dual factors.
            fill: value of new entries, or `mean` for the mean of the old ones.
        """
        grown = {}
        for name, mapping in self._parameters():
            axes = self.axes_of(mapping)
            if mapping.sources and all(source in values for source in mapping.sources):
                sources = [values[source] for source in mapping.sources]
                grown[name] = grow_gradient(mapping, sources, axes, power=power, fill=fill)
            else:
                number = 0.0 if fill == "mean" else float(fill)
                dtype = next(iter(values.values())).dtype
                grown[name] = torch.full([len(axis.source) for axis in axes], number, dtype=dtype)
        return grown

    def masks(self) -> Iterator[tuple[str, Tensor]]:
        """Masks of the new entries of every grown parameter: true for new entries and further copies of old ones."""
        for name, mapping in self._parameters():
            yield name, new_entries(mapping, self.axes_of(mapping))

    def _parameters(self) -> Iterator[tuple[str, TensorMap]]:
        return ((name, mapping) for name, mapping in self.tensors.items() if not mapping.buffer)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        tensors = [
            {k: v for k, v in asdict(t).items() if v is not None and v is not False} for t in self.tensors.values()
        ]
        return {
            "seed": self.seed,
            "axes": {name: axis.to_json() for name, axis in self.axes.items()},
            "tensors": tensors,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExpansionMap:
        """Inverse of `to_json`."""
        tensors = [
            TensorMap(**{**entry, "sources": tuple(entry["sources"]), "axes": tuple(entry["axes"])})
            for entry in data["tensors"]
        ]
        axes = {name: AxisMap.from_json(axis) for name, axis in data["axes"].items()}
        return cls(axes, {mapping.name: mapping for mapping in tensors}, int(data["seed"]))


def _finite(name: str, tensor: Tensor) -> Tensor:
    # a sum is far cheaper than a look at every value; one that overflows is looked at closely
    if not bool(torch.isfinite(tensor.sum())):
        count = int((~torch.isfinite(tensor)).sum())
        if count:
            raise ExpansionError(
                f"parameter {name!r} holds {count} values that are not finite; repair the checkpoint first"
            )
    return tensor


@dataclass(frozen=True)
class TableNames:
    """Parameters of a model by the names that its family's table has for them, without tied ones.

    Attributes:
        shapes: standard name -> shape.
        actual: standard name -> name in the model.
    """

    shapes: Mapping[str, tuple[int, ...]]
    actual: Mapping[str, str]

    @classmethod
    def of(cls, model: Any, family: Family) -> TableNames:
        """Those of a model.

        Raises:
            ExpansionError: a parameter is not matched by exactly one entry of the family's table.
        """
        shapes, prefix = stored_shapes(model), body_prefix(model)
        actual = {family.standard_name(name, prefix): name for name in shapes}
        for name in actual:
            family.match(name)
        return cls({name: shapes[found] for name, found in actual.items()}, actual)


def build_map(plan: ExpansionPlan, small: Any, large: Any) -> ExpansionMap:
    """The map of a plan from one model to another; values are not looked at.

    Args:
        plan: the growth.
        small: the old model.
        large: the grown model.

    Raises:
        ExpansionError: a parameter is not matched by exactly one entry of the family's table, or the table gives it
            another shape than it has.
    """
    source, target = TableNames.of(small, plan.family), TableNames.of(large, plan.target_family)
    rows = plan.target_family.position_rows
    positions = tuple(sizes.get("positions", 0) + rows for sizes in (plan.source, plan.target))
    tied = bool(tied_names(small)) and plan.tied
    growth = Growth(
        plan.family, plan.source, plan.target, plan.strategy, tied, (positions[0], positions[1]), plan.channels,
        plan.ratio,
    )  # fmt: skip
    is_elle = plan.mode == "elle"
    axes = elle_axes(growth, torch.Generator().manual_seed(plan.seed)) if is_elle else exact_axes(growth)
    builder = _Builder(plan, axes, source, tied=tied)
    tensors, buffers = {}, buffer_names(large)
    for name, shape in target.shapes.items():
        made = builder.tensor(name)
        _check_shape(plan.target_family.name, name, [len(builder.axes[axis].source) for axis in made.axes], shape)
        for part in made.sources:
            _check_source(plan.family.name, part, made, builder.axes, source.shapes[part])
        actual = target.actual[name]
        sources = tuple(source.actual[part] for part in made.sources)
        tensors[actual] = replace(made, name=actual, sources=sources, buffer=actual in buffers)
    return ExpansionMap(builder.axes, tensors, plan.seed)


def _check_shape(family: str, name: str, made: Sequence[int], shape: Sequence[int]) -> None:
    if list(made) != list(shape):
        raise ExpansionError(
            f"family {family!r}: its table gives {name!r} the grown shape {list(made)}, the model has {list(shape)}: a "
            "space or an axis of that entry is wrong (docs/how_to/add_a_family.md)"
        )


def _check_source(
    family: str, name: str, mapping: TensorMap, axes: Mapping[str, AxisMap], shape: Sequence[int]
) -> None:
    """The old shape; rows of several sources add up, and a dense layer is one expert."""
    wanted = [axes[axis].size for axis in mapping.axes][-len(shape) :]
    if list(shape[1:]) != wanted[1:] or (len(mapping.sources) == 1 and list(shape[:1]) != wanted[:1]):
        raise ExpansionError(
            f"family {family!r}: its table gives {name!r} the shape {wanted}, the model has {list(shape)}: a space "
            "or an axis of that entry is wrong (docs/how_to/add_a_family.md)"
        )


class _Builder:
    """Turns the roles of a family's table into parameter maps."""

    def __init__(self, plan: ExpansionPlan, axes: dict[str, AxisMap], source: TableNames, *, tied: bool) -> None:
        self.plan, self.axes, self.source, self.tied = plan, axes, source, tied
        self.family: Family = plan.target_family
        self.std = float(getattr(plan.source_config, self.family.init_key, 0.02))
        self.epsilon = float(getattr(plan.source_config, "layer_norm_eps", 0.0) or 0.0)

    def tensor(self, name: str) -> TensorMap:
        """The map of one parameter of the grown model, by standard names."""
        pattern, number = self.family.match(name)
        parameter = self.family.parameter(pattern)
        layer = None if number is None else self.plan.layers[number]
        sources = self._sources(pattern, layer)
        # an inserted layer is silent as a whole: its queries need not be, and learn two steps earlier
        loud = layer is not None and layer.inserted and self.plan.mode == "exact"
        shape = self.source.shapes[sources[0]] if sources else ()
        axes = self._axis_names(parameter, shape, loud=loud)
        gain = parameter.role in ("pre_norm", "final_norm", "post_norm", "q_norm", "k_norm")
        factor, value = self._embedding_factor(parameter), None
        if layer is not None and self.plan.mode == "exact":
            factor, value = self._depth(parameter, layer)
        if value is None and not sources and len(axes) == 1:
            value = 1.0 if gain else 0.0
        elle = self.plan.mode == "elle"
        return TensorMap(
            name, sources if value is None or layer is not None else (), axes, factor,
            offset=self.family.gain_offset if gain else 0.0,
            std=self.std,
            value=value,
            inserted=value is not None or (layer is not None and layer.inserted),
            copy_noise=ELLE_NOISE if elle and len(axes) > 1 else 0.0,
            share_noise=self._expert_noise(parameter),
        )  # fmt: skip

    def _expert_noise(self, parameter: Parameter) -> float:
        """Copied experts differ from the start; what they write together does not."""
        copies = "experts" in self.plan.source and self.plan.mode == "exact"
        return EXPERT_NOISE if copies and parameter.per_expert and parameter.role == "writer" else 0.0

    def _sources(self, pattern: str, layer: Layer | None) -> tuple[str, ...]:
        parts: tuple[str, ...] = (pattern,)
        if self.family is not self.plan.family:
            parts = self.family.dense_parts.get(pattern, parts)
        names = tuple(part if layer is None else part.replace("{layer}", str(layer.source)) for part in parts)
        return names if all(name in self.source.shapes for name in names) else ()

    def _embedding_factor(self, parameter: Parameter) -> float:
        """Gemma multiplies embeddings by the root of the width, rounded to float32."""
        if not self.family.scaled_embedding or self.plan.mode == "elle":
            return 1.0
        before, after = (float(torch.tensor(s["hidden_size"] ** 0.5)) for s in (self.plan.source, self.plan.target))
        if parameter.role == "embedding":
            return before / after
        return after / before if parameter.role == "final_norm" and self.tied else 1.0

    def _depth(self, parameter: Parameter, layer: Layer) -> tuple[float, float | None]:
        """Factor on the weights, or the value of all of them, of a parameter in a layer."""
        placement, role = self.family.placement, parameter.role
        if placement == "stream":
            return self._chain(parameter, layer)
        if not layer.inserted:
            return 1.0, None
        if role == "layer_scale":
            return 1.0, 1.0
        if placement in ("sandwich", "post"):
            # old coordinates are silenced by the gain; new ones are silent already, and learn through a gain of one
            return (0.0 if role == "post_norm" else 1.0), None
        return 1.0, 0.0 if role in ("writer", "writer_bias") else None

    def _chain(self, parameter: Parameter, layer: Layer) -> tuple[float, float | None]:
        """A block of BERT with `following` blocks inserted behind it, or one of those."""
        role, gains = parameter.role, chain_gains(self.epsilon, layer.following)
        last = layer.place == layer.following
        ends_block = parameter.slot == "ffn"
        if role in ("stream_norm", "stream_norm_bias") and layer.following:
            is_gain = role == "stream_norm"
            if ends_block and last:
                return (gains.last if is_gain else 1.0), None
            inner = ends_block or layer.inserted
            return (1.0, gains.inner if is_gain else 0.0) if inner else (gains.stream, None)
        if layer.inserted:
            return 1.0, 0.0 if role in ("writer", "writer_bias") else None
        reads = role == "reader" and parameter.out == ("ffn",)
        writes = (role == "writer" and parameter.into == "ffn") or (role == "writer_bias" and ends_block)
        return (1 / gains.stream if reads else gains.stream if writes else 1.0), None

    def _axis_names(self, parameter: Parameter, shape: Sequence[int], *, loud: bool) -> tuple[str, ...]:
        """One axis map a dimension; fused and interleaved ones are made on the way.

        `shape` is that of the old parameter, for dimensions that stay.
        """
        if "attentions" in parameter.out:
            self._add_attentions()
        if parameter.role in ("kept", "layer_scale"):
            spaces = (*parameter.out, *("stays",) * len(shape))[: len(shape)]
            return tuple(self._stays(n) if space == "stays" else space for space, n in zip(spaces, shape, strict=True))
        if "stays" in (*parameter.out, parameter.into):
            return self._partly_staying(parameter, shape)
        rows = [self._side(space, parameter) for space in parameter.out]
        if parameter.role in ("q_norm", "k_norm"):
            rows = [f"{parameter.out[0]}.norm"]
        if loud:
            rows = [self._loud(row) for row in rows]
        out = self._fused(tuple(rows), parameter)
        if parameter.role == "writer" and parameter.into is not None:
            into = "ffn.out" if parameter.into == "ffn" else parameter.into
            if loud and self.family.placement in ("sandwich", "post"):
                into = self._loud_columns(into)  # the gain behind is silent: a second zero would cost a step
        elif parameter.role == "mlm_dense":
            into = "stream.read"
        else:
            into = self._side(parameter.into, parameter) if parameter.into else ""
        names = (into, out) if parameter.transposed else (out, into)
        return (("experts",) if parameter.per_expert else ()) + tuple(name for name in names if name)

    def _partly_staying(self, parameter: Parameter, shape: Sequence[int]) -> tuple[str, ...]:
        """Rows or columns that no axis changes, beside others that one does."""
        spaces = [parameter.out[0], *([parameter.into] if parameter.into else [])]
        names = [
            self._stays(n) if space == "stays" else self._side(space, parameter)
            for space, n in zip(spaces, shape, strict=True)
        ]
        return tuple(names)

    def _add_attentions(self) -> None:
        """The axis of the heads of all layers; what reads the attention of new ones and of copies begins with zeros."""
        heads = self.axes["each_head"]
        old = torch.where(heads.is_copy, NEW, heads.source)
        places = [
            torch.where((old < 0) | layer.inserted, NEW, layer.source * heads.size + old) for layer in self.plan.layers
        ]
        self.axes["attentions"] = axis_map(torch.cat(places), self.plan.source["layers"] * heads.size)

    def _stays(self, size: int) -> str:
        name = f"stays.{size}"
        self.axes.setdefault(name, axis_map(torch.arange(size), size))
        return name

    def _side(self, space: str, parameter: Parameter) -> str:
        if space == "stream":
            return f"stream.{SIDES[parameter.role]}"
        return "ffn.in" if space == "ffn" else space

    def _loud(self, row: str) -> str:
        """The axis with queries of new channels as loud as keys."""
        if row not in ("q", "q.norm"):
            return row
        axis, name = self.axes[row], f"{row}.loud"
        self.axes[name] = replace(axis, fresh=torch.ones_like(axis.fresh), constant=torch.ones_like(axis.constant))
        return name

    def _loud_columns(self, columns: str) -> str:
        """The axis that an output projection reads, with random entries for what is new."""
        axis, name = self.axes[columns], f"{columns}.loud"
        self.axes[name] = replace(axis, fresh=torch.ones_like(axis.fresh))
        return name

    def _fused(self, rows: tuple[str, ...], parameter: Parameter) -> str:
        if len(rows) == 1:
            return rows[0]
        alternate = parameter.by_head or parameter.by_neuron
        name = ("|" if alternate else "+").join(rows)
        if name not in self.axes:
            made = concatenated([self.axes[row] for row in rows])
            if alternate:
                sizes = self.plan.source, self.plan.target
                old, new = (_alternating(s, len(rows), by_head=parameter.by_head) for s in sizes)
                made = permuted(made, old, new)
            self.axes[name] = made
        return name


def _alternating(sizes: Mapping[str, int], parts: int, *, by_head: bool) -> Tensor:
    """Place in the concatenated order of every row that is stored head by head or neuron by neuron."""
    if by_head:
        return _head_by_head(sizes["heads"], parts, sizes["head_dim"])
    return _head_by_head(sizes["intermediate_size"], parts, 1)


def _head_by_head(heads: int, parts: int, size: int) -> Tensor:
    """`[heads x parts x size]`: place in the concatenated order of every row stored head by head."""
    return torch.arange(parts * heads * size).view(parts, heads, size).transpose(0, 1).reshape(-1)
