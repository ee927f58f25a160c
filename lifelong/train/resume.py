"""Checkpoints inside a phase: which one is whole, what is saved beside it, how it is restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lifelong.errors import CorruptionError, InputError
from lifelong.files import json_text, read_json, remove_tree, sync_tree, write_text
from lifelong.ledger.folder import CheckpointFolder
from lifelong.methods._method import Method


class CheckpointWriter:
    """Completes checkpoints beside training: waits for the disk, writes the state of the phase, removes older ones.

    The state is written last: a checkpoint without it was cut short and is passed over.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the disk still works on the last checkpoint."""
        return self._running is not None and not self._running.done()

    def complete(self, folder: Path, state: Mapping[str, Any], methods: Sequence[Method], *, kept: int) -> None:
        """Begin to complete a checkpoint that all processes have written their parts of.

        Args:
            folder: of the checkpoint.
            state: of the phase; read before this returns.
            methods: whose own state belongs to it; likewise.
            kept: how many of the newest checkpoints are left when this one is whole.
        """
        self.wait()
        checkpoint = CheckpointFolder(folder)
        save_methods(methods, checkpoint.methods)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle of Trainer's that nobody reads
        text = json_text({"sizes": _sizes(folder), **state})

        def finish() -> None:
            sync_tree(folder)  # a power cut must not leave the state file without what it vouches for
            write_text(checkpoint.state, text)
            _remove_outdated(folder, kept)

        self._running = self._pool.submit(finish)

    def wait(self) -> None:
        """Until the last checkpoint is whole.

        Raises:
            OSError: it could not be written.
        """
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def close(self) -> None:
        """Let the last checkpoint become whole if it can, whatever has ended the training; a failure is not told."""
        self._pool.shutdown()


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


def _remove_outdated(newest: Path, kept: int) -> None:
    """Leave so many checkpoints of a phase, the newest whole one included; the next may be being written already."""
    checkpoints = _checkpoints(newest.parent)
    for outdated in checkpoints[: checkpoints.index(newest) + 1][:-kept]:
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
