"""Models without weights of their own: parameters come from a function, all at once or as they are needed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lifelong.errors import ExpansionError
from lifelong.expand.float64 import usual_float32
from lifelong.lm.objective import objective_of

Fetch = Callable[[str], Tensor]
Rows = Callable[[str, int, int], Tensor]
Blocks = Callable[[str], Iterator[Tensor]]
BLOCK_BYTES = 1 << 21
"""Rows of a parameter that are read at once where it is not held."""
KEEP_BYTES = 1 << 28
"""While they are compared, models are held as a whole up to this size; larger ones are read as they are needed."""


def empty_model(model_class: Any, config: Any) -> Any:
    """A model whose parameters have shapes and no values; its buffers (rotary tables) are real.

    Raises:
        ExpansionError: the class does not take the configuration.
    """
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    config = copy.deepcopy(config)
    config._experts_implementation = "eager"  # the grouped kernel has no float64
    if getattr(config, "pad_token_id", 0) is None:
        config.pad_token_id = 0  # classifiers of sequences look for the last token that is none
    try:
        with init_empty_weights(include_buffers=False), no_init_weights():
            model = model_class(config).eval()
        model.tie_weights()
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ExpansionError(f"{model_class.__name__} does not take the configuration: {reason}") from None
    return model


def tied_names(model: Any) -> dict[str, str]:
    """Parameters that share another's values -> that other one."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def stored_tensors(model: Any) -> dict[str, Tensor]:
    """What a checkpoint holds, by name: parameters and persistent buffers, but those that share another's values."""
    tied = tied_names(model)
    return {name: value for name, value in model.state_dict().items() if name not in tied}


def stored_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Their shapes."""
    return {name: tuple(value.shape) for name, value in stored_tensors(model).items()}


def buffer_names(model: Any) -> set[str]:
    """Names of persistent buffers."""
    return set(model.state_dict()) - {name for name, _ in model.named_parameters(remove_duplicate=False)}


def model_class_of(config: Any, objective: str) -> Any:
    """The transformers class of a configuration with the head of an objective.

    Raises:
        ExpansionError: there is none.
    """
    try:
        return objective_of(objective).model_classes[type(config)]
    except KeyError:
        raise ExpansionError(f"{config.model_type}: transformers has no {objective} head for it") from None


def checkpoint_class(config: Any, objective: str) -> Any:
    """The class that a checkpoint was saved with, so that its head grows along; else that of the objective.

    Raises:
        ExpansionError: its configuration names a class that transformers does not have: its head would be lost.
    """
    import transformers

    named = next(iter(getattr(config, "architectures", None) or ()), None)
    if named is None:
        return model_class_of(config, objective)
    found = getattr(transformers, named, None)
    if named.endswith("ForMultipleChoice"):
        raise ExpansionError(
            f"architectures: {named} takes several texts at once and cannot be compared; grow its body"
        )
    if found is None:
        raise ExpansionError(
            f"architectures: transformers has no class {named!r}, and what it has beside the {objective} model would "
            "be lost; to grow it as that all the same, remove architectures from config.json"
        )
    return found if getattr(found, "config_class", None) is type(config) else model_class_of(config, objective)


def body_prefix(model: Any) -> str:
    """What names of the body's parameters begin with; empty where the model is a body alone."""
    prefix = str(model.base_model_prefix)
    return prefix if hasattr(model, prefix) else ""


def filled_model(model_class: Any, config: Any, fetch: Fetch, dtype: torch.dtype, blocks: Blocks | None = None) -> Any:
    """A model in evaluation mode whose parameters come from `fetch`, cast to `dtype`; so do stored buffers.

    One that is too large to be held reads the parameters of a module when it runs: of linear layers and embeddings by
    `blocks` of rows, of others as a whole.
    """
    model = empty_model(model_class, config)
    tied, held = tied_names(model), is_held(model, dtype)

    def load(module: nn.Module, prefix: str) -> None:
        for name in module._parameters:
            if module._parameters[name] is not None:
                full = f"{prefix}.{name}" if prefix else name
                with usual_float32():
                    value = fetch(tied.get(full, full)).to(dtype)
                module._parameters[name] = nn.Parameter(value, requires_grad=False)

    for name in buffer_names(model):  # few and small; other formats than their own are for parameters
        module, _, own = name.rpartition(".")
        value = fetch(name)
        model.get_submodule(module)._buffers[own] = value.double() if dtype == torch.float64 else value
    for prefix, module in model.named_modules():
        if not any(value is not None for value in module._parameters.values()):
            continue
        if held:
            load(module, prefix)
        elif blocks is not None and type(module) in (nn.Linear, nn.Embedding):
            names = {name: f"{prefix}.{name}" for name, value in module._parameters.items() if value is not None}
            _stream(module, {name: tied.get(full, full) for name, full in names.items()}, fetch, blocks, dtype)
        else:
            _load_around_forward(module, prefix, load)
    return model


def is_held(model: Any, dtype: torch.dtype) -> bool:
    """Whether a model's parameters are held all at once while it is compared."""
    size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    return bool(size <= KEEP_BYTES)


def in_blocks(rows: Rows, model: Any) -> Blocks:
    """Parameters of a model by blocks of rows."""
    shapes = stored_shapes(model)

    def blocks(name: str) -> Iterator[Tensor]:
        count, each = shapes[name][0], torch.Size(shapes[name][1:]).numel() * 2
        step = max(1, BLOCK_BYTES // each)
        return (rows(name, start, min(start + step, count)) for start in range(0, count, step))

    return blocks


def _stream(module: Any, names: Mapping[str, str], fetch: Fetch, blocks: Blocks, dtype: torch.dtype) -> None:
    """Let a linear layer or an embedding go through its rows block by block; what is linear in them stays exact."""

    def cast(value: Tensor) -> Tensor:
        with usual_float32():
            return value.to(dtype)

    def linear(x: Tensor) -> Tensor:
        made, room = [], torch.empty(0, dtype=dtype)
        for block in blocks(names["weight"]):
            if room.numel() < block.numel():  # fresh memory for every block takes most of the time
                room = torch.empty(block.numel(), dtype=dtype)
            made.append(x @ room[: block.numel()].view(block.shape).copy_(block).T)
        whole = torch.cat(made, -1)
        return whole + cast(fetch(names["bias"])) if "bias" in names else whole

    def embedding(ids: Tensor) -> Tensor:
        found, first = torch.zeros(*ids.shape, module.embedding_dim, dtype=dtype), 0
        for block in blocks(names["weight"]):
            here = (ids >= first) & (ids < first + len(block))
            found[here] = cast(block[ids[here] - first])
            first += len(block)
        return found

    module.forward = linear if isinstance(module, nn.Linear) else embedding


def _load_around_forward(module: nn.Module, prefix: str, load: Callable[[nn.Module, str], None]) -> None:
    """Give a module its parameters when it runs, and take them away again."""
    empty = dict(module._parameters)
    module.register_forward_pre_hook(lambda m, _args: load(m, prefix))
    module.register_forward_hook(lambda m, _args, _out: m._parameters.update(empty))
