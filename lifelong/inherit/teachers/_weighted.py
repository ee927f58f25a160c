"""Several teachers in one: a mixture in probability space, or one for each domain.

Shape suffixes: B sequences, T tokens, N predicted tokens, D domains, J teachers, K kept entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lifelong.errors import InputError
from lifelong.inherit.settings import TeacherSection
from lifelong.inherit.teachers._teacher import Batch, Teacher, TeacherCost, TeacherInputs
from lifelong.lm.batch import on_device, on_host, predicted_sequences, sequences
from lifelong.lm.loss import CachedTarget, Target


def weighted_teacher(
    parts: Sequence[tuple[TeacherSection, Mapping[str, float]]], inputs: TeacherInputs, domains: Sequence[str]
) -> Teacher | None:
    """A teacher of several for some domains; None where none of them is there yet.

    Args:
        parts: each with its weights by domain; 0 where a domain is not named.
        inputs: of the stage.
        domains: that are to be taught.
    """
    teachers, table_JD = [], []
    for part, weights in parts:
        if (teacher := part.build(inputs, [name for name in domains if weights.get(name)])) is not None:
            teachers.append(teacher)
            table_JD.append([weights.get(name, 0.0) for name in inputs.columns])
    if not teachers:
        return None
    return MixtureTeacher(teachers, weights_by_domain(torch.tensor(table_JD).T), inputs.objective)


class MixtureTeacher(Teacher):
    """Several teachers, mixed in probability space by weights of each sequence; only those with a weight run.

    Routing to the teacher of a sequence's domain is the mixture whose weights are 0 and 1.

    Args:
        teachers: J of them.
        weigh: weights `[B, J]` of a batch, on the host, not negative; a row is scaled to sum to one, a row of zeros
            is not taught.
        objective: clm or mlm.
    """

    def __init__(self, teachers: Sequence[Teacher], weigh: Callable[[Batch], Any], objective: str) -> None:
        self.teachers, self.weigh, self.objective = list(teachers), weigh, objective
        self.is_sharded = False

    @property
    def cost(self) -> TeacherCost:
        """Cost of all teachers together."""
        return sum((teacher.cost for teacher in self.teachers), TeacherCost())

    def _weights(self, batch: Batch) -> NDArray[np.float32]:
        weights_BJ: NDArray[np.float32] = np.array(self.weigh(batch), dtype=np.float32)
        for place, teacher in enumerate(self.teachers):
            if (teaches_B := teacher.teaches(batch)) is not None:
                weights_BJ[~teaches_B, place] = 0
        if (weights_BJ < 0).any() or not np.isfinite(weights_BJ).all():
            raise InputError(f"weights of a mixture of teachers are numbers >= 0, not {weights_BJ.tolist()}")
        weights_BJ /= weights_BJ.sum(1, keepdims=True).clip(min=np.finfo(np.float32).tiny)
        return weights_BJ

    def teaches(self, batch: Batch) -> NDArray[np.bool_]:
        """Sequences with any weight."""
        found: NDArray[np.bool_] = self._weights(batch).max(1) > 0
        return found

    def targets(self, batch: Batch) -> Sequence[Target]:
        """Targets of the active teachers; one is shown only the sequences that it has a weight for."""
        weights_BJ = self._weights(batch)
        sequence_N = predicted_sequences(batch, self.objective)
        found: list[Target] = []
        for index, teacher in enumerate(self.teachers):
            active = np.flatnonzero(weights_BJ[:, index])
            if not len(active):
                if self.is_sharded:
                    teacher.attend(batch)
                continue
            weight_N = weights_BJ[sequence_N, index]
            found += [_spread(target, weight_N) for target in teacher.targets(sequences(batch, active))]
        return found

    def attend(self, batch: Batch) -> None:
        """All of them."""
        for teacher in self.teachers:
            teacher.attend(batch)

    def shard(self, wrap: Callable[[Any], Any]) -> None:
        """All of them."""
        self.is_sharded = True
        for teacher in self.teachers:
            teacher.shard(wrap)

    def model_for(self, domain_id: int) -> Any:
        """That of the only one with a weight on the domain."""
        weights_J = self.weigh({"domain_ids": torch.tensor([domain_id])})[0]
        active = [teacher for teacher, weight in zip(self.teachers, weights_J, strict=True) if weight > 0]
        return active[0].model_for(domain_id) if len(active) == 1 else None

    def close(self) -> None:
        """Free all of them."""
        for teacher in self.teachers:
            teacher.close()
        self.teachers = []


def _spread(target: Target, weights_N: NDArray[np.float32]) -> Target:
    """A target of the rows with a weight as one of all rows; weights stay on the host, where they are asked for."""
    rows, weight_N = np.flatnonzero(weights_N), torch.from_numpy(weights_N)
    if target.weight_N is not None:
        weight_N[rows] *= target.weight_N.cpu()
    if len(rows) == len(weight_N):
        return replace(target, weight_N=weight_N)

    def spread(values: Tensor, other: float = 0) -> Tensor:
        everywhere = values.new_full((len(weight_N), values.shape[1]), other)
        return everywhere.index_copy_(0, on_device(rows, values), values)

    if isinstance(target, CachedTarget):
        ids_NK, probabilities_NK = spread(target.ids_NK, -1), spread(target.probabilities_NK)
        return replace(target, ids_NK=ids_NK, probabilities_NK=probabilities_NK, weight_N=weight_N)
    return replace(target, hidden_NE=spread(target.hidden_NE), weight_N=weight_N)


def weights_by_domain(table_DJ: Tensor) -> Callable[[Batch], NDArray[np.float32]]:
    """Weights of a mixture by the column of a sequence's domain.

    Args:
        table_DJ: for every domain of the stream, weights of the teachers.
    """
    table = table_DJ.numpy()

    def weigh(batch: Batch) -> NDArray[np.float32]:
        found: NDArray[np.float32] = table[on_host(batch, "domain_ids")]
        return found

    return weigh
