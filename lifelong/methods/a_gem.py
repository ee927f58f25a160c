"""A-GEM: a step that would raise the loss on a sample of the memory is turned until it does not.

Source: Chaudhry et al. 2019 (arXiv 1812.00420), equation 11.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lifelong.methods._memory_gradients import add_to_gradients, dot, memory_gradient
from lifelong.methods._method import Method, StageContext


@dataclass
class Plugin(Method):
    """Settings: `samples` rows of the memory at every step; a strength below 1 turns the step part of the way."""

    needs_memory: ClassVar[bool] = True

    samples: int = 8
    context: StageContext | None = field(default=None, init=False)
    reference: list[Tensor] = field(default_factory=list, init=False)

    def begin_stage(self, context: StageContext) -> None:
        """Know where the memory is."""
        self.context = context

    def begin_step(self, model: PreTrainedModel, step: int) -> None:
        """The gradient of a fresh sample of the memory."""
        context = self.context
        self.reference = []
        if context is not None and context.memory is not None and context.memory.domains:
            self.reference = memory_gradient(context, model, context.memory.batch(self.samples, step))
            self.extra_tokens += self.samples * context.sequence_length

    @torch.no_grad()
    def edit_gradients(self, model: PreTrainedModel) -> None:
        """Take the part off that points against the memory."""
        if not self.reference:
            return
        parameters = [p for p in model.parameters() if p.requires_grad]
        against = dot([p.grad for p in parameters], self.reference)
        if against < 0:
            share = float(against / dot(self.reference, self.reference))
            add_to_gradients(parameters, self.reference, -self.strength * share)

    def planned_tokens(self, num_steps: int, sequence_length: int, earlier_domains: int) -> float:
        """A sample at every step."""
        return float(num_steps * self.samples * sequence_length if earlier_domains else 0)

    def end_stage(self, context: StageContext) -> None:
        """Drop the reference gradients; nothing is kept."""
        del context
        self.context, self.reference = None, []
