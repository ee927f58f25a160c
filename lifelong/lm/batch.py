"""A batch on its device beside the arrays that it was made of on the host.

Which tokens are predicted, which rows are replay, where documents begin: the collator has written it, and an
accelerator that is asked for it has to finish all that it was given before it answers. `Trainer` moves every tensor of
a batch, so that the arrays travel in an object that it does not look into.

Shape suffixes: B sequences, T tokens, N predicted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lifelong.lm.objective import objective_of

IGNORED = -100
ON_HOST = "on_host"
"""Key of the arrays in what a collator gives."""
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class HostArrays:
    """The arrays of a batch by the names of its tensors, opaque to what moves tensors."""

    arrays: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class WithHostArrays:
    """A collator whose batches keep their arrays."""

    collator: Callable[[Any], Mapping[str, Tensor]]

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """The batch of `rows`, which `known_batch` takes."""
        batch = self.collator(rows)
        return {**batch, ON_HOST: HostArrays({name: tensor.numpy() for name, tensor in batch.items()})}


class KnownBatch(dict[str, Tensor]):
    """A batch whose arrays are known; a changed copy of it (`{**batch, ...}`) is an ordinary one again."""

    def __init__(self, batch: Batch, on_host: HostArrays) -> None:
        super().__init__(batch)
        self.on_host = on_host


def known_batch(inputs: Mapping[str, Any]) -> Batch:
    """A collated batch, its arrays out of the way of what expects tensors; as it is where they were not kept."""
    if ON_HOST not in inputs:
        return inputs
    return KnownBatch({name: value for name, value in inputs.items() if name != ON_HOST}, inputs[ON_HOST])


def on_host(batch: Batch, name: str) -> NDArray[Any]:
    """One array of a batch; where it is not known, the device is asked."""
    if isinstance(batch, KnownBatch):
        return batch.on_host.arrays[name]
    found: NDArray[Any] = batch[name].cpu().numpy()
    return found


def beside(value: Tensor, like: Tensor) -> Tensor:
    """A value on the device of another; CUDA, which copies what it is given before it returns, is not waited for."""
    return value.to(like.device, non_blocking=like.is_cuda)


def on_device(array: NDArray[Any], like: Tensor) -> Tensor:
    """The array on the device of a tensor, likewise."""
    return beside(torch.from_numpy(array), like)


def sequences(batch: Batch, chosen: NDArray[np.int64]) -> Batch:
    """Some sequences of a batch."""
    index = on_device(chosen, batch["input_ids"])
    part = {name: tensor.index_select(0, index) for name, tensor in batch.items()}
    if not isinstance(batch, KnownBatch):
        return part
    return KnownBatch(part, HostArrays({name: array[chosen] for name, array in batch.on_host.arrays.items()}))


def with_arrays(batch: Batch, arrays: Mapping[str, NDArray[Any]]) -> Batch:
    """The batch with other arrays in place of some."""
    found = {**batch, **{name: on_device(array, batch["input_ids"]) for name, array in arrays.items()}}
    if not isinstance(batch, KnownBatch):
        return found
    return KnownBatch(found, HostArrays({**batch.on_host.arrays, **arrays}))


def predicted_sequences(batch: Batch, objective: str) -> NDArray[np.int64]:
    """Sequence of every predicted token, `[N]`."""
    return _places(batch, objective)[0]


def predicted_places(batch: Batch, objective: str) -> tuple[Tensor, Tensor] | None:
    """Sequence of every predicted token and its place among those that predict, `[N]` each; None where unknown."""
    if not isinstance(batch, KnownBatch):
        return None
    sequence_N, place_N = (on_device(index, batch["labels"]) for index in _places(batch, objective))
    return sequence_N, place_N


def _places(batch: Batch, objective: str) -> tuple[NDArray[np.int64], ...]:
    predicted: Any = objective_of(objective).predicted(on_host(batch, "labels"))  # type: ignore[arg-type]
    return np.nonzero(predicted != IGNORED)
