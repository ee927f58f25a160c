"""Per-batch distillation: which sequences, at what rate, until when.

Shape suffixes: B sequences.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lifelong.errors import InputError, UnknownNameError
from lifelong.inherit.dynamic import most_competent
from lifelong.inherit.schedule import Schedule
from lifelong.inherit.teachers._teacher import Teacher, TeacherCost
from lifelong.lm.batch import on_device, on_host, predicted_places, sequences
from lifelong.lm.head import Inheritance, predicted_rows
from lifelong.lm.loss import OnlineTarget, Target


class TeacherEarlyStop:
    """Stops distillation once the student is better than its teacher on held-out text; checked every few steps.

    Args:
        teacher_nats: held-out loss of the teacher, nats per token.
        student_nats: computes the student's on the same text.
        every: optimizer steps between two looks. There is none at step 0, where a student may still be its teacher.

    Source: the rule behind the teacher phase of Qin et al. 2022 (arXiv 2105.13880).
    """

    def __init__(self, teacher_nats: float, student_nats: Callable[[], float], every: int) -> None:
        if every < 1:
            raise InputError(f"steps between two evaluations of the student: must be at least 1, not {every}")
        self.teacher_nats, self.student_nats, self.every = teacher_nats, student_nats, every
        self.reached = False
        self.last_step = 0

    def check(self, step: int) -> bool:
        """Evaluate the student when due; true from the first check on at which it was better."""
        if not self.reached and step % self.every == 0 and step > self.last_step:
            self.last_step = step
            self.reached = self.student_nats() < self.teacher_nats
        return self.reached

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed stage continues with."""
        return {"reached": self.reached, "last_step": self.last_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.reached, self.last_step = bool(state["reached"]), int(state["last_step"])


TAUGHT = ("all", "new", "replay")


class Distiller:
    """Gives every batch its inheritance; the teacher runs only on sequences whose rate is above zero.

    Args:
        teacher: freed as soon as the schedule is over.
        schedule: inheritance rate by progress.
        on: `all` sequences, only those of the `new` domain, or only `replay`.
        temperature: tau of the KL term.
        bernoulli: a sequence is taught fully with probability alpha and not at all otherwise: the same
            gradient in expectation, at alpha times the teacher's cost.
        seed: of those draws.
        surpassed: ends the inheritance when the student has become better than its teacher.
        objective: of the batches; asked for where the most competent of several teachers is to be found.
        student_head_flops: of one token in the student's output embedding, which a dynamic schedule reads twice.

    Raises:
        UnknownNameError: `on` is none of the three.
    """

    def __init__(
        self,
        teacher: Teacher,
        schedule: Schedule,
        *,
        on: str = "all",
        temperature: float = 1.0,
        bernoulli: bool = False,
        seed: int = 0,
        surpassed: TeacherEarlyStop | None = None,
        objective: str = "clm",
        student_head_flops: float = 0.0,
    ) -> None:
        if on not in TAUGHT:
            raise UnknownNameError("kind of tokens to teach", on, TAUGHT, "inherit.on")
        self.teacher: Teacher | None = teacher
        self.schedule, self.on, self.temperature = schedule, on, temperature
        self.bernoulli, self.seed = bernoulli, seed
        self.surpassed = surpassed
        self.objective, self.student_head_flops = objective, student_head_flops
        self.is_sharded = False
        self.autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
        """Precision of the student's forward, which is not inside it when its teacher is asked."""
        self._before = TeacherCost()

    @property
    def cost(self) -> TeacherCost:
        """Cost of the teacher in this stage, before a resumption included."""
        return self._before + (self.teacher.cost if self.teacher is not None else TeacherCost())

    @property
    def teacher_tokens(self) -> int:
        """Tokens that a teacher was run on."""
        return self.cost.tokens

    def alpha(self, progress: float) -> float:
        """The rate at `progress` in [0, 1] of the stage."""
        return 0.0 if self.surpassed is not None and self.surpassed.reached else self.schedule.alpha(progress)

    def for_batch(self, batch: Mapping[str, Tensor], *, progress: float, step: int) -> Inheritance | None:
        """Inheritance of one batch, or None when nothing in it is taught."""
        over = self.schedule.over(progress)
        if self.teacher is not None and not over and self.surpassed is not None:
            over = self.surpassed.check(step)
        if over:
            self.close()
        if self.teacher is None:
            return None
        rates_B = self._rates(batch, self.schedule.alpha(progress), step)
        if (teaches_B := self.teacher.teaches(batch)) is not None:
            rates_B = rates_B * teaches_B
        is_taught_B = rates_B > 0
        if not is_taught_B.any():
            if self.is_sharded:
                with self.autocast():
                    self.teacher.attend(batch)
            return None
        teaches_all = bool(is_taught_B.all())
        shown = batch if teaches_all else sequences(batch, np.flatnonzero(is_taught_B))
        with self.autocast():
            targets = self.teacher.targets(shown)
            if self.schedule.is_dynamic:
                targets = self._dynamic(targets, shown)
        return Inheritance(
            targets,
            on_device(rates_B, batch["labels"]),
            self.temperature,
            self.schedule.is_dynamic,
            None if teaches_all else is_taught_B,
        )

    def _dynamic(self, targets: Sequence[Target], shown: Mapping[str, Tensor]) -> Sequence[Target]:
        """One target a sequence; what it costs to ask the student and the teachers is added to the teachers' cost."""
        flops = self.student_head_flops
        if len(targets) > 1:
            labels_BT = shown["labels"]
            places = predicted_places(shown, self.objective)
            _, labels_N, sequence_N = predicted_rows(labels_BT[..., None], labels_BT, self.objective, places)
            targets = most_competent(targets, labels_N, sequence_N, self.temperature)
            flops += sum(2.0 * target.weight_VE.numel() for target in targets if isinstance(target, OnlineTarget))
        self._before = self._before + TeacherCost(flops=flops * shown["input_ids"].numel())
        return targets

    def _rates(self, batch: Mapping[str, Tensor], alpha: float, step: int) -> NDArray[np.float32]:
        rates_B = np.full(len(batch["input_ids"]), alpha, dtype=np.float32)
        if self.bernoulli:
            # drawn from the tokens themselves, so that no split into micro-batches or ranks changes the draw
            start = self.seed * 1_000_003 + step & 0xFFFFFFFF
            draws = [zlib.crc32(row.tobytes(), start) / 2**32 for row in on_host(batch, "input_ids")]
            rates_B = (np.array(draws, dtype=np.float32) < rates_B).astype(np.float32)
        if self.on != "all":
            replayed = on_host(batch, "is_replay")
            rates_B = rates_B * (replayed if self.on == "replay" else ~replayed)
        return rates_B

    def shard(self, wrap: Callable[[Any], Any]) -> None:
        """Let every process hold a part of the teacher only, as `wrap` does it to a model."""
        if self.teacher is not None:
            self.is_sharded = True
            self.teacher.shard(wrap)

    def close(self) -> None:
        """Free the teacher."""
        if self.teacher is not None:
            self._before = self.cost
            self.teacher.close()
            self.teacher = None

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed stage continues with."""
        cost = self.cost
        state: dict[str, Any] = {"teacher_tokens": cost.tokens, "teacher_flops": cost.flops}
        if cost.mapped:
            state["mapped"] = {name: list(sums) for name, sums in cost.mapped.items()}
        if self.surpassed is not None:
            state["surpassed"] = self.surpassed.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        mapped = {name: (int(rows), float(mass)) for name, (rows, mass) in state.get("mapped", {}).items()}
        self._before = TeacherCost(int(state["teacher_tokens"]), float(state.get("teacher_flops", 0.0)), mapped)
        if self.surpassed is not None and "surpassed" in state:
            self.surpassed.load_state_dict(state["surpassed"])
            if self.surpassed.reached:
                self.close()
