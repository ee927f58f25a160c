"""SFA, sequential fine-tuning with averaging: a stage goes back a part of the way to where it began, several times.

With the default settings a quarter of the way, four times: at the end of every quarter of the stage.

Source: Kleiman et al. 2025, Soup to go (arXiv 2501.05559), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lifelong.errors import InputError
from lifelong.methods._importances import Tensors, weights_of
from lifelong.methods._method import Method, StageContext, stock_parameters


@dataclass
class Plugin(Method):
    """Settings: `back`, the part of the way, which the strength multiplies, and `times`."""

    back: float = 0.25
    times: int = 4
    before: Tensors = field(default_factory=dict, init=False)
    due: frozenset[int] = field(default=frozenset(), init=False)
    done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.back < 0 or self.back * self.strength > 1:
            raise InputError(f"methods.sfa.back: times the strength must be between 0 and 1, not {self.back}")
        if self.times < 1:
            raise InputError(f"methods.sfa.times: must be at least 1, not {self.times}")

    def begin_stage(self, context: StageContext) -> None:
        """Keep the start; randomly initialised weights are not worth going back to."""
        self.before = weights_of(context.model) if context.has_learned else {}
        parts = range(1, self.times)  # the last time is the end of the stage
        self.due = frozenset(round(part * context.num_steps / self.times) for part in parts)

    def begin_step(self, model: PreTrainedModel, step: int) -> None:
        """Note where the stage is."""
        del model
        self.done = step

    def end_step(self, model: PreTrainedModel) -> None:
        """Go back where it is time."""
        if self.done + 1 in self.due:
            self._go_back(model)

    def end_stage(self, context: StageContext) -> None:
        """Go back for the last time."""
        self._go_back(context.model)
        self.before = {}

    @torch.no_grad()
    def _go_back(self, model: PreTrainedModel) -> None:
        for name, parameter in stock_parameters(model).items() if self.before else ():
            parameter.lerp_(self.before[name].to(parameter.device), self.back * self.strength)

    def state_dict(self) -> dict[str, Tensor]:
        """State: the weights where the stage began."""
        return dict(self.before)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.before = dict(state)
