"""Avalanche as an oracle: what its storage policies keep of a stream, and its own forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.evaluation.functional import forgetting
from avalanche.training.storage_policy import (
    ClassBalancedBuffer,
    ExperienceBalancedBuffer,
    ParametricBuffer,
    ReservoirSamplingBuffer,
)

from lifelong.records import LossMatrix

STORAGE: Mapping[str, Any] = {
    "reservoir": ReservoirSamplingBuffer,
    "experience-balanced": ExperienceBalancedBuffer,
    "domain-balanced": ClassBalancedBuffer,
    "parametric": ParametricBuffer,
}


class Numbers(torch.utils.data.Dataset[tuple[int, int]]):
    """(stage, row) of every block of a stage."""

    def __init__(self, stage: int, length: int) -> None:
        self._stage, self._length = stage, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= int(index) < self._length:
            raise IndexError(index)
        return self._stage, int(index)


def stored_rows(
    policy: str, stages: Sequence[tuple[str, int]], max_blocks: int, *, seed: int = 0
) -> list[tuple[int, int]]:
    """(stage, row) of every block that an Avalanche storage policy holds after all stages.

    Args:
        policy: a name in `STORAGE`.
        stages: domain name and number of blocks of each stage, in order.
        max_blocks: capacity.
        seed: of the draw.
    """
    columns = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in stages))}
    datasets = [_dataset(stage, length, columns[name]) for stage, (name, length) in enumerate(stages)]
    buffer = STORAGE[policy](max_size=max_blocks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for experience in benchmark_from_datasets(train=datasets).train_stream:
            buffer.post_adapt(None, experience)
    return [(int(item[0]), int(item[1])) for item in buffer.buffer]


def _dataset(stage: int, length: int, column: int) -> AvalancheDataset[Any]:
    attributes = [DataAttribute([column] * length, name) for name in ("targets", "targets_task_labels")]
    return AvalancheDataset([Numbers(stage, length)], data_attributes=attributes, collate_fn=list)


def forgetting_since_learned(matrix: LossMatrix) -> dict[str, float]:
    """Avalanche's own forgetting of every domain met before the last stage, from our loss matrix.

    Avalanche speaks of accuracies, where more is better: it is given negated losses, and its boundary of a domain is
    the last stage that trained on it. Its code subtracts the later value from the earlier one (the formula in its
    docstring has the opposite sign), so that the result is positive where a loss rose, as everywhere here.
    """
    last = len(matrix.stages) - 1
    learned = {column: stage for stage, column in enumerate(matrix.stage_domains)}
    columns = [column for column, stage in learned.items() if stage < last]
    if not columns:
        return {}
    # as floats: of integers Avalanche makes an integer result
    scores = [[-float("nan" if row[k] is None else row[k]) for k in columns] for row in matrix.nats_per_token]
    found = forgetting(scores, boundary_indices=[learned[k] for k in columns])[last]
    return {matrix.domains[k]: float(value) for k, value in zip(columns, found, strict=True)}
