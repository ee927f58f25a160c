"""Who teaches: every teacher gives targets for the labelled rows of the sequences it is shown.

Letters: B sequences, T tokens, N predicted tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lifelong.inherit.head import head_settings, hidden_states, predicted_rows
from lifelong.inherit.loss import OnlineTarget, Target


class Teacher(Protocol):
    """What the loss needs of a teacher."""

    def targets(self, batch: Mapping[str, Tensor]) -> Sequence[Target]:
        """Targets whose rows are the predicted tokens of `batch`, in order."""

    def close(self) -> None:
        """Free what the teacher holds; it is not asked again."""


class OnlineTeacher:
    """A frozen model that runs beside the student, in evaluation mode and with the same packing mask."""

    def __init__(self, model: Any, objective: str) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.objective = objective

    def targets(self, batch: Mapping[str, Tensor]) -> Sequence[Target]:
        """One online target; the head is applied later, chunk by chunk, to labelled rows only."""
        device = batch["input_ids"].device
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        with torch.no_grad():
            hidden_BTD = hidden_states(self.model, batch, self.objective)
            hidden_NE, _, _ = predicted_rows(hidden_BTD, batch["labels"], self.objective)
        settings = head_settings(self.model)
        return [OnlineTarget(hidden_NE, settings.pop("weight_VD"), **settings)]

    def close(self) -> None:
        """Drop the model."""
        self.model = None
