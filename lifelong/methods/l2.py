"""L2 to the previous stage: weights are held near where the stage began.

Source: Li et al. 2018 (arXiv 1802.01483), L2-SP, equation 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lifelong.methods._method import Method, StageContext, stock_parameters


@dataclass
class Plugin(Method):
    """`strength / 2` times the squared distance between the weights and those at the start of the stage."""

    strength: float = 1.0
    anchors: dict[str, Tensor] = field(default_factory=dict, init=False)

    def begin_stage(self, context: StageContext) -> None:
        """Take the anchors; in the first stage of a model from random weights there is nothing to keep."""
        self.anchors = {}
        if context.has_learned:
            self.anchors = {
                name: p.detach().clone() for name, p in stock_parameters(context.model).items() if p.requires_grad
            }

    def loss_term(self, model: PreTrainedModel) -> Tensor | None:
        """The penalty, or None without anchors."""
        if not self.anchors:
            return None
        moves = [p - self.anchors[n] for n, p in model.named_parameters() if n in self.anchors]
        terms = [move.to(torch.promote_types(move.dtype, torch.float32)).square().sum() for move in moves]
        return torch.stack(terms).sum() * (0.5 * self.strength)

    def state_dict(self) -> dict[str, Tensor]:
        """The anchors."""
        return dict(self.anchors)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the anchors back."""
        self.anchors = dict(state)
