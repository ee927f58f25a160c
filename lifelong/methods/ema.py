"""EMA: the stage ends with the exponential moving average of its weights.

The average of a model that has learned something begins with the weights where the stage began, and so keeps of them
what `decay` leaves; that of random weights begins after the first step. Unlike with `lr.average` the next stage starts
from the average too.

Source: Polyak and Juditsky 1992; Li et al. 2024, switch EMA (arXiv 2402.09240), equation 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedModel

from lifelong.errors import InputError
from lifelong.methods._method import Method, StageContext
from lifelong.methods._running_mean import RunningMean


@dataclass
class Plugin(Method):
    """Settings: `decay` of the average per step. With a strength below 1 a stage ends between its weights and that."""

    decay: float = 0.99
    running: RunningMean = field(default_factory=RunningMean, init=False)

    def __post_init__(self) -> None:
        if self.strength > 1:
            raise InputError(f"methods.ema.strength: must be between 0 and 1, not {self.strength}")
        if not 0 < self.decay < 1:
            raise InputError(f"methods.ema.decay: must be between 0 and 1, both excluded, not {self.decay}")

    def begin_stage(self, context: StageContext) -> None:
        """Begin with what the model knows."""
        self.running = RunningMean()
        if context.has_learned:
            self.running.add(context.model)

    def end_step(self, model: PreTrainedModel) -> None:
        """Move the average towards the weights."""
        self.running.add(model, weight=1 - self.decay)

    def end_stage(self, context: StageContext) -> None:
        """End with the average."""
        self.running.put_into(context.model, self.strength)

    def state_dict(self) -> dict[str, Tensor]:
        """The average."""
        return self.running.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.running.load_state_dict(state)
