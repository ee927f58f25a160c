"""Who is taught, how strongly, and until when: a teacher with its schedule, for one stage.

Letters: B sequences.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lifelong.errors import UnknownNameError
from lifelong.inherit.head import Inheritance
from lifelong.inherit.schedule import Schedule
from lifelong.inherit.teachers import Teacher

TAUGHT = ("all", "new", "replay")


class Inheritor:
    """Gives every batch its inheritance; the teacher runs only on sequences whose rate is above zero.

    Args:
        teacher: freed as soon as the schedule is over.
        schedule: inheritance rate by progress.
        on: `all` sequences, only those of the `new` domain, or only `replay`.
        temperature: tau of the KL term.
        bernoulli: a sequence is taught fully with probability alpha and not at all otherwise: the same
            gradient in expectation, at alpha times the teacher's cost.
        seed: of those draws.

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
    ) -> None:
        if on not in TAUGHT:
            raise UnknownNameError("kind of tokens to teach", on, TAUGHT, "inherit.on")
        self.teacher: Teacher | None = teacher
        self.schedule, self.on, self.temperature = schedule, on, temperature
        self.bernoulli, self.seed = bernoulli, seed
        self.teacher_tokens = 0

    def alpha(self, progress: float) -> float:
        """The rate at `progress` in [0, 1] of the stage."""
        return self.schedule.alpha(progress)

    def for_batch(self, batch: Mapping[str, Tensor], *, progress: float, step: int) -> Inheritance | None:
        """Inheritance of one batch, or None when nothing in it is taught."""
        if self.schedule.over(progress):
            self.close()
        if self.teacher is None:
            return None
        alpha_B = self._rates(batch, self.schedule.alpha(progress), step)
        taught = alpha_B > 0
        if not bool(taught.any()):
            return None
        shown = {name: tensor[taught] for name, tensor in batch.items()}
        self.teacher_tokens += shown["input_ids"].numel()
        return Inheritance(self.teacher.targets(shown), alpha_B, self.temperature)

    def _rates(self, batch: Mapping[str, Tensor], alpha: float, step: int) -> Tensor:
        ids_BT = batch["input_ids"]
        alpha_B = torch.full((ids_BT.shape[0],), alpha, dtype=torch.float32, device=ids_BT.device)
        if self.bernoulli:
            # drawn from the tokens themselves, so that no split into micro-batches or ranks changes the draw
            keys = [
                zlib.crc32(row.cpu().numpy().tobytes(), self.seed * 1_000_003 + step & 0xFFFFFFFF) for row in ids_BT
            ]
            draws = torch.tensor([key / 2**32 for key in keys], device=ids_BT.device)
            alpha_B = (draws < alpha_B).float()
        if self.on != "all":
            replayed = batch["is_replay"]
            alpha_B = alpha_B * (replayed if self.on == "replay" else ~replayed)
        return alpha_B

    def close(self) -> None:
        """Free the teacher."""
        if self.teacher is not None:
            self.teacher.close()
            self.teacher = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed stage continues with."""
        return {"teacher_tokens": self.teacher_tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.teacher_tokens = int(state["teacher_tokens"])
