"""Several teachers in one: a mixture in probability space, or one for each domain.

Shape suffixes: B sequences, T tokens, N predicted tokens, D domains, J teachers, K kept entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lifelong.errors import InputError
from lifelong.inherit.settings import TeacherSection
from lifelong.inherit.teachers._teacher import Batch, Teacher, TeacherCost, TeacherInputs
from lifelong.lm.head import predicted_rows
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
        weigh: weights `[B, J]` of a batch, not negative; a row is scaled to sum to one, a row of zeros is not
            taught.
        objective: clm or mlm.
    """

    def __init__(self, teachers: Sequence[Teacher], weigh: Callable[[Batch], Tensor], objective: str) -> None:
        self.teachers, self.weigh, self.objective = list(teachers), weigh, objective
        self.is_sharded = False

    @property
    def cost(self) -> TeacherCost:
        """Cost of all teachers together."""
        return sum((teacher.cost for teacher in self.teachers), TeacherCost())

    def _weights(self, batch: Batch) -> Tensor:
        weights_BJ = self.weigh(batch)
        everything_B = torch.ones_like(batch["input_ids"][:, 0], dtype=torch.bool)
        taught = [teacher.teaches(batch) for teacher in self.teachers]
        teaches_BJ = torch.stack([everything_B if one is None else one for one in taught], 1)
        weights_BJ = torch.where(teaches_BJ, weights_BJ, torch.zeros_like(weights_BJ))
        if bool((weights_BJ < 0).any()) or not bool(weights_BJ.isfinite().all()):
            raise InputError(f"weights of a mixture of teachers are numbers >= 0, not {weights_BJ.tolist()}")
        return weights_BJ / weights_BJ.sum(1, keepdim=True).clamp(min=torch.finfo(weights_BJ.dtype).tiny)

    def teaches(self, batch: Batch) -> Tensor:
        """Sequences with any weight."""
        return (self._weights(batch) > 0).any(1)

    def targets(self, batch: Batch) -> Sequence[Target]:
        """Targets of the active teachers; one is shown only the sequences that it has a weight for."""
        weights_BJ = self._weights(batch)
        labels_BT = batch["labels"]
        _, _, sequence_N = predicted_rows(labels_BT[..., None], labels_BT, self.objective)
        found: list[Target] = []
        for index, teacher in enumerate(self.teachers):
            active_B = weights_BJ[:, index] > 0
            if not bool(active_B.any()):
                if self.is_sharded:
                    teacher.attend(batch)
                continue
            rows_N = active_B[sequence_N]
            weight_N = weights_BJ[sequence_N, index]
            shown = {name: tensor[active_B] for name, tensor in batch.items()}
            found += [_spread(target, rows_N, weight_N) for target in teacher.targets(shown)]
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


def _spread(target: Target, rows_N: Tensor, weight_N: Tensor) -> Target:
    """A target of some rows as one of all rows; the others have weight 0."""
    if target.weight_N is not None:
        weight_N = weight_N.clone()
        weight_N[rows_N] = weight_N[rows_N] * target.weight_N
    if bool(rows_N.all()):
        return replace(target, weight_N=weight_N)
    if isinstance(target, CachedTarget):
        shape = (len(rows_N), target.ids_NK.shape[1])
        ids_NK, probabilities_NK = target.ids_NK.new_full(shape, -1), target.probabilities_NK.new_zeros(shape)
        ids_NK[rows_N], probabilities_NK[rows_N] = target.ids_NK, target.probabilities_NK
        return CachedTarget(ids_NK, probabilities_NK, weight_N)
    hidden_NE = target.hidden_NE.new_zeros(len(rows_N), target.hidden_NE.shape[1])
    hidden_NE[rows_N] = target.hidden_NE
    return replace(target, hidden_NE=hidden_NE, weight_N=weight_N)


def weights_by_domain(table_DJ: Tensor) -> Callable[[Batch], Tensor]:
    """Weights of a mixture by the column of a sequence's domain.

    Args:
        table_DJ: for every domain of the stream, weights of the teachers.
    """

    def weigh(batch: Batch) -> Tensor:
        return table_DJ.to(batch["domain_ids"].device)[batch["domain_ids"]]

    return weigh
