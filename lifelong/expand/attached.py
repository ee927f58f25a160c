"""Carries optimizer state, adapters and learning-rate groups over to the grown model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lifelong.errors import ExpansionError, InputError
from lifelong.expand.axes import MEAN, AxisMap
from lifelong.expand.lazy import tied_names
from lifelong.expand.mapping import ExpansionMap
from lifelong.files import atomic_directory

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
    # an inserted layer that is still silent: what it adds is a constant, whatever it was copied from
    up = _along_rows(up_OR, rows) * (tensor_map.factor if tensor_map.value is None else 0.0)
    shared = columns.scale / columns.counts[columns.source.clamp(min=0)] if columns.split else columns.scale
    down = _along_rows(down_RI.T, AxisMap(
        columns.source, columns.size, shared, columns.dual, columns.fresh, columns.constant
    )).T  # fmt: skip
    return down.contiguous(), up


ADAPTER_WEIGHTS, PREFIX = "adapter_model.safetensors", "base_model.model."


def grow_adapter_folder(adapter: str | Path, mapping: ExpansionMap, out: str | Path) -> None:
    """A LoRA adapter as peft writes it, at the grown size: the grown base with it does what the old one did.

    Args:
        adapter: folder with `adapter_config.json` and `adapter_model.safetensors`.
        mapping: of the growth, as in the `expansion.json` of the stage or of the grown checkpoint.
        out: new folder.

    Raises:
        InputError: not such an adapter, or `out` exists.
        ExpansionError: a weight with an adapter is no plain matrix with one source.
    """
    adapter, out = Path(adapter), Path(out)
    if out.exists():
        raise InputError(f"{str(out)!r} already exists; choose a new folder")
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        weights = load_file(adapter / ADAPTER_WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"adapter {str(adapter)!r}: cannot be read ({error})") from None
    if config.get("peft_type") != "LORA" or config.get("fan_in_fan_out"):
        raise InputError(f"adapter {str(adapter)!r}: LoRA on linear layers alone has a grown counterpart")
    of = {key.removeprefix(PREFIX).partition(".lora_")[0] for key in weights}
    grown: dict[str, Tensor] = {}
    for name, tensor_map in mapping.tensors.items():
        module, source = name.removesuffix(".weight"), tensor_map.sources[0] if tensor_map.sources else ""
        if (old := source.removesuffix(".weight")) not in of:
            continue
        down_RI, up_OR = (weights[f"{PREFIX}{old}.lora_{part}.weight"] for part in "AB")
        down_RI, up_OR = grow_adapter(down_RI, up_OR, mapping, name)
        grown |= {f"{PREFIX}{module}.lora_A.weight": down_RI, f"{PREFIX}{module}.lora_B.weight": up_OR.contiguous()}
    with atomic_directory(out) as partial:
        shutil.copyfile(adapter / "adapter_config.json", partial / "adapter_config.json")
        save_file(grown, partial / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _along_rows(value: Tensor, axis: AxisMap) -> Tensor:
    """Rows at their new places, times their factors; zeros where new."""
    extended = torch.cat([value, value.mean(0, keepdim=True), torch.zeros_like(value[:1])])
    index = torch.where(axis.source >= 0, axis.source, torch.where(axis.source == MEAN, axis.size, axis.size + 1))
    return extended[index] * axis.scale.to(value.dtype)[:, None]
