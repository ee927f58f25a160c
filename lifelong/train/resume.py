"""Checkpoints inside a phase: which one is whole, what is saved beside it, how it is restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lifelong.errors import CorruptionError, InputError
from lifelong.files import read_json, remove_tree, sync_tree, write_json
from lifelong.ledger.folder import CheckpointFolder
from lifelong.methods._method import Method


def write_state(folder: Path, state: Mapping[str, Any], methods: Sequence[Method]) -> None:
    """Complete a checkpoint: written last, a checkpoint without this file was cut short and is passed over."""
    checkpoint = CheckpointFolder(folder)
    save_methods(methods, checkpoint.methods)
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle of Trainer's that nobody reads
    sync_tree(folder)  # a power cut must not leave the state file without what it vouches for
    write_json(checkpoint.state, {"sizes": _sizes(folder), **state})


def read_state(checkpoint: Path, sharding: str | None, methods: Sequence[Method]) -> dict[str, Any]:
    """State of the phase that a checkpoint was written in; that of the methods is put into them.

    Raises:
        InputError: it was written by a launch that shards parameters in another way.
    """
    state: dict[str, Any] = read_json(CheckpointFolder(checkpoint).state)
    if (written := state.get("sharding")) != sharding:
        raise InputError(
            f"{checkpoint}: was written by {_launched_as(written)}, this is {_launched_as(sharding)}; launch "
            "it as before (the number of processes is free), or remove this folder: the stage then restarts"
        )
    load_methods(methods, CheckpointFolder(checkpoint).methods)
    return state


def remove_outdated(folder: Path, kept: int) -> None:
    """Leave only the newest checkpoints of a phase."""
    for outdated in _checkpoints(folder)[:-kept]:
        remove_tree(outdated)


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a phase in the order of their steps."""
    return sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; those behind it are removed."""
    checkpoints = _checkpoints(folder)
    while checkpoints:
        if _is_complete(checkpoints[-1]):
            return checkpoints[-1]
        remove_tree(checkpoints.pop())
    return None


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes of every file, by its path inside the checkpoint."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}


def _launched_as(sharding: str | None) -> str:
    return f"a run with {sharding}" if sharding else "a run with whole parameters on every device"


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = read_json(CheckpointFolder(checkpoint).state)["sizes"]
        sizes.pop(CheckpointFolder.state.name, None)  # written last
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (CorruptionError, OSError, KeyError, TypeError):
        return False


def save_methods(methods: Sequence[Method], path: Path) -> None:
    """State of all methods in one safetensors file, and what they have cost; none is written without a method."""
    state = {}
    for i, method in enumerate(methods):
        state[f"{i}.extra_tokens"] = torch.tensor(method.extra_tokens, dtype=torch.float64)
        state |= {f"{i}.{name}": t.detach().cpu().contiguous() for name, t in method.state_dict().items()}
    if state:
        save_file(state, path)


def load_methods(methods: Sequence[Method], path: Path) -> None:
    """Inverse of `save_methods`."""
    if not path.is_file():
        return
    state = load_file(path)
    for index, method in enumerate(methods):
        prefix = f"{index}."
        own = {name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)}
        method.extra_tokens = float(own.pop("extra_tokens", 0.0))
        method.load_state_dict(own)
