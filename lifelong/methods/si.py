"""SI: weights are held by how much of a stage's fall in loss their own way has brought about.

The importances are in nats already: summed over a stage's own moves they are the fall in loss. Gradients are those that
the optimizer uses, after clipping and with the penalty's share in them.

Source: Zenke et al. 2017 (arXiv 1703.04200), equations 3 to 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lifelong.methods._importances import Anchor, AnchoredMethod, Tensors, weights_of, wide
from lifelong.methods._method import StageContext, stock_parameters


@dataclass
class Plugin(AnchoredMethod):
    """Settings: `damping`, the square of a move below which importances do not grow further."""

    damping: float = 1e-3
    path: Tensors = field(default_factory=dict, init=False)
    start: Tensors = field(default_factory=dict, init=False)
    before_step: Tensors = field(default_factory=dict, init=False)
    gradients: Tensors = field(default_factory=dict, init=False)

    def begin_stage(self, context: StageContext) -> None:
        """Every weight's way begins here."""
        super().begin_stage(context)
        self.start = weights_of(context.model)
        self.path = {name: torch.zeros_like(wide(value)) for name, value in self.start.items()}

    def edit_gradients(self, model: PreTrainedModel) -> None:
        """Keep where the step starts and how the loss falls there."""
        self.before_step = weights_of(model)
        self.gradients = {n: p.grad.detach().clone() for n, p in stock_parameters(model).items() if p.grad is not None}

    def end_step(self, model: PreTrainedModel) -> None:
        """The fall in loss that each weight's step has brought about, to first order."""
        for name, parameter in stock_parameters(model).items():
            if name in self.gradients:
                move = wide(parameter) - wide(self.before_step[name])
                self.path[name] -= wide(self.gradients[name]) * move
        self.before_step, self.gradients = {}, {}

    def end_stage(self, context: StageContext) -> None:
        """Add what this stage has shown; half the penalty's square needs twice the importance."""
        weights = weights_of(context.model)
        importances = {
            name: 2 * way.clamp(min=0) / ((wide(weights[name]) - wide(self.start[name])) ** 2 + self.damping)
            for name, way in self.path.items()
        }
        if self.anchors:
            before = self.anchors[0].importances
            importances = {name: before[name] + value for name, value in importances.items()}
        self.anchors = [Anchor(weights, importances)]
        self.path, self.start = {}, {}

    def state_dict(self) -> dict[str, Tensor]:
        """The anchor, and the way so far inside a stage."""
        ways = {f"path.{name}": value for name, value in self.path.items()}
        return super().state_dict() | ways | {f"start.{name}": value for name, value in self.start.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        super().load_state_dict(state)
        for name, part in (("path.", self.path), ("start.", self.start)):
            part.clear()
            part.update({key[len(name) :]: value for key, value in state.items() if key.startswith(name)})
