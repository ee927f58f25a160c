"""Carries optimizer state, adapters and learning-rate groups over to the grown model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lifelong.errors import ExpansionError
from lifelong.expand.axes import MEAN, AxisMap
from lifelong.expand.lazy import tied_names
from lifelong.expand.mapping import ExpansionMap

FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")


def grow_optimizer_state(
    state: Mapping[str, Mapping[str, Any]], mapping: ExpansionMap, parameters: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """State of Adam, AdamW or SGD with momentum by parameter name, at the grown size.

    First moments go by the dual of the weights' map, second ones by its square; new entries begin with a zero first
    and the mean second moment. Step counts stay. A parameter whose sources have no state gets none. State of another
    kind (factored, preconditioned) is left behind: the optimizer starts it anew.

    Args:
        state: old parameter name -> its state.
        mapping: of the growth.
        parameters: the grown parameters, for dtype and device.
    """
    grown: dict[str, dict[str, Any]] = {}
    for name, tensor_map in mapping.tensors.items():
        found = [state[source] for source in tensor_map.sources if state.get(source)]
        if not found or len(found) != len(tensor_map.sources):
            continue
        moved: dict[str, Any] = {}
        for key, value in found[0].items():
            if key in FIRST_MOMENTS or key in SECOND_MOMENTS:
                values = {source: state[source][key].cpu() for source in tensor_map.sources}
                second = key in SECOND_MOMENTS
                one = ExpansionMap(mapping.axes, {name: tensor_map}, mapping.seed)
                made = one.apply_gradients(values, power=2 if second else 1, fill="mean" if second else 0.0)[name]
                moved[key] = made.to(parameters[name].device, value.dtype)
            elif key == "step":
                moved[key] = value.clone() if isinstance(value, Tensor) else value
        grown[name] = moved
    return grown


def move_optimizer(optimizer: torch.optim.Optimizer, old: Any, new: Any, mapping: ExpansionMap) -> None:
    """Hand an optimizer over from the old model to the grown one, in place; groups and their settings stay.

    A parameter of an inserted layer joins the group of the layer it copies.

    Raises:
        ExpansionError: the optimizer holds parameters that are not the model's.
    """
    names = {id(value): name for name, value in old.named_parameters()}
    tied = tied_names(new)
    fresh = {name: value for name, value in new.named_parameters(remove_duplicate=False) if name not in tied}
    foreign = sum(id(p) not in names for group in optimizer.param_groups for p in group["params"])
    if foreign:
        raise ExpansionError(f"optimizer: {foreign} of its parameters are not the model's")
    canonical = tied_names(old)
    state = {canonical.get(names[id(p)], names[id(p)]): values for p, values in optimizer.state.items()}
    moved = grow_optimizer_state(state, mapping, fresh)
    taken: set[str] = set()
    for group in optimizer.param_groups:
        members = {canonical.get(names[id(p)], names[id(p)]) for p in group["params"]}
        chosen = [name for name, t in mapping.tensors.items() if members & set(t.sources) and name not in taken]
        taken |= set(chosen)
        group["params"] = [fresh[name] for name in chosen]
    # what has no counterpart learns with the largest group
    rest = [fresh[name] for name in mapping.tensors if name not in taken and not mapping.tensors[name].sources]
    max(optimizer.param_groups, key=lambda group: len(group["params"]))["params"].extend(rest)
    optimizer.state.clear()
    for name, values in moved.items():
        if name in taken:
            optimizer.state[fresh[name]] = values


def parameter_groups(
    model: Any, mapping: ExpansionMap, *, learning_rate: float, new_multiplier: float = 1.0, old_multiplier: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for an optimizer: parameters that are entirely new, and those that hold old entries.

    A multiplier of 0 leaves its group out of training (`requires_grad` is switched off).
    """
    parameters = dict(model.named_parameters())
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for name, is_new in mapping.masks():
        if name in parameters:
            groups[bool(is_new.all())].append(parameters[name])
    result = []
    for all_new, multiplier in ((False, old_multiplier), (True, new_multiplier)):
        for parameter in groups[all_new]:
            parameter.requires_grad_(multiplier != 0)
        if groups[all_new] and multiplier:
            result.append({"params": groups[all_new], "lr": learning_rate * multiplier})
    return result


@contextmanager
def train_only_new(model: Any, mapping: ExpansionMap) -> Iterator[None]:
    """While open, gradients reach new entries only. Use an optimizer without weight decay: decay asks no gradient."""
    parameters = dict(model.named_parameters())
    hooks = []
    for name, is_new in mapping.masks():
        if name in parameters:
            mask = is_new.to(parameters[name].device)
            hooks.append(parameters[name].register_hook(lambda gradient, mask=mask: gradient * mask))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def grow_adapter(down_RI: Tensor, up_OR: Tensor, mapping: ExpansionMap, name: str) -> tuple[Tensor, Tensor]:
    """A low-rank adapter of the weight `name`, W + up down, at the grown size; W' + up' down' is the grown sum.

    Args:
        down_RI: `[R,I]` from the input to the rank.
        up_OR: `[O,R]` from the rank to the output.
        mapping: of the growth.
        name: the grown weight, stored as [out, in].

    Raises:
        ExpansionError: the weight is no plain matrix with one source.
    """
    tensor_map = mapping.tensors[name]
    if len(tensor_map.axes) != 2 or len(tensor_map.sources) != 1:
        raise ExpansionError(f"adapter of {name}: only plain matrices carry one")
    rows, columns = mapping.axes_of(tensor_map)
    up = _along_rows(up_OR, rows) * tensor_map.factor
    shared = columns.scale / columns.counts[columns.source.clamp(min=0)] if columns.split else columns.scale
    down = _along_rows(down_RI.T, AxisMap(
        columns.source, columns.size, shared, columns.dual, columns.fresh, columns.constant
    )).T  # fmt: skip
    return down.contiguous(), up


def _along_rows(value: Tensor, axis: AxisMap) -> Tensor:
    """Rows at their new places, times their factors; zeros where new."""
    extended = torch.cat([value, value.mean(0, keepdim=True), torch.zeros_like(value[:1])])
    index = torch.where(axis.source >= 0, axis.source, torch.where(axis.source == MEAN, axis.size, axis.size + 1))
    return extended[index] * axis.scale.to(value.dtype)[:, None]
