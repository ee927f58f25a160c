"""Weight averaging: what a stage has learned is averaged with where it began, at the size it ends with.

With strength 1 the mean of both, with 0.5 a quarter of the old and three quarters of the new, with 2 the old model.
`lifelong merge` makes the same models from a finished run, without choosing beforehand.

Source: Wortsman et al. 2022 (arXiv 2109.01903), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lifelong.errors import InputError
from lifelong.methods._importances import Tensors, weights_of
from lifelong.methods._method import Method, StageContext


@dataclass
class Plugin(Method):
    """No settings beside the strength."""

    before: Tensors = field(default_factory=dict, init=False)
    largest: ClassVar[float] = 2.0

    def __post_init__(self) -> None:
        if self.strength > self.largest:
            raise InputError(f"methods.average.strength: must be between 0 and {self.largest:g}, not {self.strength}")

    def begin_stage(self, context: StageContext) -> None:
        """Keep the start; randomly initialised weights are not worth keeping."""
        self.before = weights_of(context.model) if context.has_learned else {}

    @torch.no_grad()
    def end_stage(self, context: StageContext) -> None:
        """Go back part of the way."""
        for name, parameter in context.model.named_parameters():
            if name in self.before:
                parameter.lerp_(self.before[name].to(parameter.device), self.strength / 2)
        self.before = {}

    def state_dict(self) -> dict[str, Tensor]:
        """State: the weights where the stage began."""
        return dict(self.before)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.before = dict(state)
