"""Teachers with other token ids than the student's: the batch is mapped to theirs, their targets back to the student's.

Text is cut as the teacher's tokenizer cuts it (`stream.domain_tokenizers`), so that positions agree token by token.

Shape suffixes: B sequences, T tokens, V the teacher's vocabulary, U the student's, K kept entries.

Source: Khanuja et al. 2021 (MergeDistill, arXiv 2106.02834), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lifelong.errors import InputError
from lifelong.inherit.teachers._teacher import Batch, Teacher, TeacherCost
from lifelong.lm.batch import IGNORED, on_host, with_arrays
from lifelong.lm.loss import CachedTarget, Target
from lifelong.lm.targets import MappedMass


class MappedTeacher(Teacher):
    """A teacher behind an id map that is exact where it says something, and says nothing elsewhere.

    Probability of tokens that the student lacks is not handed to others: a row teaches as strongly as the mass that
    has a place, whether the teacher runs or its targets come from a cache.

    Args:
        teacher: reads its own ids.
        student_ids_V: the student's id of each of the teacher's tokens, -1 where it has none; no two are the same.
        student_size: U, tokens of the student's vocabulary.
        name: of the teacher, for messages and records.

    Raises:
        InputError: two of the teacher's tokens have the same id.
    """

    def __init__(self, teacher: Teacher, student_ids_V: Tensor, student_size: int, name: str) -> None:
        self.teacher, self.name, self.mass = teacher, name, MappedMass()
        self.student_ids_V = student_ids_V.long()
        placed = self.student_ids_V[self.student_ids_V >= 0]
        if len(set(placed.tolist())) != len(placed):
            raise InputError(f"teacher {name}: its id map gives two of its tokens the same id")
        if len(placed) and int(placed.max()) >= student_size:
            raise InputError(f"teacher {name}: its id map names token {int(placed.max())} of {student_size}")
        self._highest = int(placed.max()) if len(placed) else -1
        self._own_ids_U = np.full(student_size, -1, dtype=np.int64)
        self._own_ids_U[placed.numpy()] = np.flatnonzero(self.student_ids_V.numpy() >= 0)

    @property
    def cost(self) -> TeacherCost:
        """Cost of the teacher, with the probability mass that has no place."""
        return self.teacher.cost + TeacherCost(mapped={self.name: (self.mass.rows, self.mass.unmapped)})

    def teaches(self, batch: Batch) -> NDArray[np.bool_] | None:
        """The sequences that the teacher teaches."""
        return self.teacher.teaches(batch)

    def targets(self, batch: Batch) -> Sequence[Target]:
        """The teacher's targets in the student's ids."""
        return [self._mapped(target) for target in self.teacher.targets(self.own_batch(batch))]

    def own_batch(self, batch: Batch) -> Batch:
        """The batch in the teacher's ids.

        Raises:
            InputError: a token that the teacher does not know; padding, which nobody looks at, may be one.
        """
        ids_BT, labels_BT = on_host(batch, "input_ids"), on_host(batch, "labels")
        inside_BT, predicted_BT = on_host(batch, "segment_ids") > 0, labels_BT != IGNORED
        own_BT = self._own_ids_U[ids_BT]
        own_labels_BT = np.where(predicted_BT, self._own_ids_U[labels_BT.clip(min=0)], labels_BT)
        unknown = (own_BT < 0) & inside_BT | (own_labels_BT < 0) & predicted_BT
        if unknown.any():
            raise InputError(
                f"teacher {self.name}: {int(unknown.sum())} of {int(inside_BT.sum())} tokens of a batch are not in its "
                "vocabulary; it can teach only domains that `tokenizer.merge` reads by its own tokenizer"
            )
        return with_arrays(batch, {"input_ids": own_BT.clip(min=0), "labels": own_labels_BT})

    def _mapped(self, target: Target) -> Target:
        device = target.ids_NK.device if isinstance(target, CachedTarget) else target.hidden_NE.device
        self.student_ids_V = self.student_ids_V.to(device)
        if not isinstance(target, CachedTarget):
            return replace(target, student_ids_V=self.student_ids_V, mass=self.mass)
        there_NK = target.ids_NK >= 0
        ids_NK = self.student_ids_V[target.ids_NK.clamp(min=0).long()]
        placed_NK = there_NK & (ids_NK >= 0)
        self.mass.add((target.probabilities_NK * (there_NK & ~placed_NK)).sum(1))
        ids_NK = torch.where(placed_NK, ids_NK, -1)
        probabilities_NK = target.probabilities_NK * placed_NK
        return replace(target, ids_NK=ids_NK, probabilities_NK=probabilities_NK, highest=self._highest)

    def attend(self, batch: Batch) -> None:
        """The teacher, on ids of its own; what it does not know is read as its first token, nobody looks."""
        own_BT = self._own_ids_U[on_host(batch, "input_ids")]
        self.teacher.attend(with_arrays(batch, {"input_ids": own_BT.clip(min=0)}))

    def shard(self, wrap: Callable[[Any], Any]) -> None:
        """The teacher; the map is small and whole everywhere."""
        self.teacher.shard(wrap)

    def close(self) -> None:
        """Free the teacher."""
        self.teacher.close()
