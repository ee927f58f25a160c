"""Checkpoints: load, save, gather from shards, fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lifelong.lm.foreign import loading
from lifelong.lm.objective import objective_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# how weights of anybody are loaded: no pickle is opened and no code that comes with them runs
SAFE: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """A plain `save_pretrained` folder with the tokenizer beside the weights.

    Args:
        model: to save.
        tokenizer: its own.
        folder: to write.
        weights: what `full_state_dict` gave, where the model itself holds only a part of them.
    """
    if weights is not None:
        model = _with_weights(model, weights)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether the model is sharded: every process holds only a part of each parameter (FSDP2)."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def full_state_dict(model: PreTrainedModel) -> Mapping[str, Tensor] | None:
    """Gather all weights of a sharded model on the CPU of the first process; every process calls.

    Returns:
        None where each process has them all anyway; nothing in any but the first.
    """
    if not is_sharded(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: Any = get_model_state_dict(model, options=whole)
    return dict(weights)


def _with_weights(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """A stock model of the same configuration with these weights; copies none of them."""
    import torch

    # fully_shard has put a class of its own in front of the model's
    stock = next(kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers.models."))
    with torch.device("meta"):
        plain: PreTrainedModel = stock(model.config)
    plain.load_state_dict(dict(weights), strict=True, assign=True)
    plain.tie_weights()
    return plain


def load_model(
    source: str | Path, objective: str, revision: str | None = None, dtype: str | torch.dtype = "float32"
) -> PreTrainedModel:
    """A model with the head of the objective (`clm` or `mlm`), from a folder or the hub.

    Args:
        source: folder or hub id.
        objective: clm or mlm.
        revision: commit hash or tag of a hub checkpoint.
        dtype: of the weights; `auto` for the checkpoint's own.

    Raises:
        InputError: no such checkpoint, or one that transformers cannot load.
    """
    auto_class = objective_of(objective).auto_class
    with loading("checkpoint", source, f"transformers cannot load it as {objective}"), _in_every_process():
        model: PreTrainedModel = auto_class.from_pretrained(
            str(source), revision=revision or "main", dtype=dtype, **SAFE
        )
        return model


def cast_weights(model: PreTrainedModel, dtype: str | torch.dtype) -> PreTrainedModel:
    """Hold the parameters in another precision, in place.

    Buffers stay: `model.to(torch.bfloat16)` would round the frequencies of rotary positions too.
    """
    import torch

    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for parameter in model.parameters():
        parameter.data = parameter.data.to(wanted)
    return model


def stored_dtype(config: Any) -> str:
    """Name of the precision that the weights of a checkpoint are stored in, as its configuration has it."""
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")


@contextlib.contextmanager
def _in_every_process() -> Iterator[None]:
    """Load weights wherever that is asked for: with FSDP, accelerate may ask for empty ones in all but one process."""
    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    before = os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before


def load_config(source: str | Path, revision: str | None = None) -> Any:
    """The configuration of a checkpoint, without its weights.

    Raises:
        InputError: no such checkpoint.
    """
    import transformers

    with loading("checkpoint", source):
        return transformers.AutoConfig.from_pretrained(
            str(source), revision=revision or "main", trust_remote_code=False
        )


def as_stored(model: PreTrainedModel, source: str | Path) -> PreTrainedModel:
    """The model in the precision that a checkpoint is stored in, in place; sums were made in float32 before."""
    return cast_weights(model, stored_dtype(load_config(source)))


def weights_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over names, shapes and values of all weights and the configuration's architecture.

    Of values and not of their storage: a bfloat16 checkpoint has one fingerprint, however it was loaded.
    """
    import torch

    digest = hashlib.sha256(model.config.model_type.encode())
    for name, held in sorted(model.state_dict().items()):
        tensor = held.float() if held.dtype in (torch.bfloat16, torch.float16) else held
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def to_accelerator(model: PreTrainedModel) -> None:
    """Move a model to the accelerator of this process, if it leaves half of what is free there for its activations."""
    import torch

    if torch.accelerator.is_available():
        free, _ = torch.accelerator.get_memory_info()
        if 2 * sum(value.numel() * value.element_size() for value in model.parameters()) < free:
            model.to(torch.accelerator.current_accelerator())


def meta_model(config: Any, objective: str) -> PreTrainedModel:
    """The shapes of a model without its weights."""
    import torch

    with torch.device("meta"):
        model: PreTrainedModel = objective_of(objective).auto_class.from_config(config, trust_remote_code=False)
    return model
