"""The bridge to Avalanche, and the only file that imports it.

A stream becomes an Avalanche benchmark whose experiences are the stages, so that third-party strategies and
metrics can be tried on the very same packed blocks; Avalanche's storage policies choose replay blocks, to check
our own against; and its forgetting is a second opinion on ours. Importing Avalanche takes some ten seconds: import
this module inside a function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.training.storage_policy import (
    ClassBalancedBuffer,
    ExperienceBalancedBuffer,
    ReservoirSamplingBuffer,
)

from lifelong.errors import UnknownNameError
from lifelong.records import LossMatrix
from lifelong.stream.collator import Collator, PackedRow
from lifelong.stream.mixing import Blocks
from lifelong.stream.ordering import key_of

if TYPE_CHECKING:
    from avalanche.benchmarks.scenarios import CLScenario

# ParametricBuffer is left out: with no grouping it keeps nine tenths of the newest experience (0.6.0)
_STORAGE: Mapping[str, Any] = {
    "reservoir": ReservoirSamplingBuffer,
    "experience-balanced": ExperienceBalancedBuffer,
    "domain-balanced": ClassBalancedBuffer,
}


class _Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Blocks of one domain as dicts of tensors [T], masked by their row where the objective asks for it."""

    def __init__(self, blocks: Blocks, column: int, collator: Collator) -> None:
        self._blocks, self._column, self._collator = blocks, column, collator

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = PackedRow(
            block=self._blocks[int(index)],
            domain_id=self._column,
            is_replay=False,
            mask_key=key_of("avalanche", self._column, int(index)),
        )
        return {name: tensor[0] for name, tensor in self._collator([row]).items()}


class _Numbers(torch.utils.data.Dataset[tuple[int, int]]):
    def __init__(self, experience: int, length: int) -> None:
        self._experience, self._length = experience, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[int, int]:
        if not 0 <= int(index) < self._length:
            raise IndexError(index)
        return self._experience, int(index)


def stack_rows(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of tensors [T] to one batch [B, T]."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def as_benchmark(
    train: Sequence[tuple[str, Blocks]], collator: Collator, *, valid: Sequence[tuple[str, Blocks]] = ()
) -> CLScenario:
    """The stages as experiences of an Avalanche benchmark.

    Items are the dicts of tensors that training sees (`input_ids`, `labels`, `position_ids`, ...); `targets` and
    `targets_task_labels` hold the column of the domain.

    Args:
        train: domain name and blocks of each stage, in order; a name may come back.
        collator: makes tensors of rows.
        valid: the same for a `test` stream, if given.
    """
    columns = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in [*train, *valid]))}
    streams = {"train": train, **({"test": valid} if valid else {})}
    return benchmark_from_datasets(
        **{
            stream: [_dataset(_Rows(blocks, columns[name], collator), columns[name]) for name, blocks in stages]
            for stream, stages in streams.items()
        }
    )


def _dataset(rows: Any, column: int, collate: Any = stack_rows) -> AvalancheDataset[Any]:
    labels = [column] * len(rows)
    attributes = [DataAttribute(labels, name) for name in ("targets", "targets_task_labels")]
    return AvalancheDataset([rows], data_attributes=attributes, collate_fn=collate)


def stored_rows(
    policy: str, stages: Sequence[tuple[str, int]], max_blocks: int, *, seed: int = 0
) -> list[tuple[int, int]]:
    """(stage, row) of every block that an Avalanche storage policy holds after all stages.

    Args:
        policy: reservoir, experience-balanced or domain-balanced.
        stages: domain name and number of blocks of each stage, in order.
        max_blocks: capacity.
        seed: of the draw.

    Raises:
        UnknownNameError: Avalanche has no sound policy of that name.
    """
    if policy not in _STORAGE:
        raise UnknownNameError("Avalanche storage policy", policy, _STORAGE)
    columns = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in stages))}
    datasets = [
        _dataset(_Numbers(stage, length), columns[name], collate=list) for stage, (name, length) in enumerate(stages)
    ]
    buffer = _STORAGE[policy](max_size=max_blocks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for experience in benchmark_from_datasets(train=datasets).train_stream:
            buffer.post_adapt(None, experience)
    return [(int(item[0]), int(item[1])) for item in buffer.buffer]


def forgetting_since_learned(matrix: LossMatrix) -> dict[str, float]:
    """Avalanche's own forgetting of every domain met before the last stage, from our loss matrix.

    Avalanche speaks of accuracies, where more is better: it is given negated losses, and its boundary of a domain is
    the last stage that trained on it. Its code subtracts the later value from the earlier one (the formula in its
    docstring has the opposite sign), so that the result is positive where a loss rose, as everywhere here.
    """
    from avalanche.evaluation.functional import forgetting

    last = len(matrix.stages) - 1
    learned = {column: stage for stage, column in enumerate(matrix.stage_domains)}
    columns = [column for column, stage in learned.items() if stage < last]
    if not columns:
        return {}
    # as floats: of integers Avalanche makes an integer result
    scores = [[-float("nan" if row[k] is None else row[k]) for k in columns] for row in matrix.nats_per_token]  # type: ignore[arg-type]
    found = forgetting(scores, boundary_indices=[learned[k] for k in columns])[last]
    return {matrix.domains[k]: float(value) for k, value in zip(columns, found, strict=True)}
