"""MAS: weights that the output depends on are held, whatever the labels say.

Importances are scaled so that their sum is the trace of the Fisher information, measured on the same rows: a strength
means the same as in `ewc`.

Source: Aljundi et al. 2018 (arXiv 1711.09601), equations 2 to 4; importances of several stages are summed, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lifelong.lm.head import head_settings, hidden_states, predicted_rows
from lifelong.methods._importances import (
    Anchor,
    AnchoredMethod,
    fisher_information,
    mean_over_rows,
    total,
    weights_of,
)
from lifelong.methods._method import Batch, StageContext


@dataclass
class Plugin(AnchoredMethod):
    """Settings: `samples` rows to measure on."""

    samples: int = 64

    def planned_tokens(self, num_steps: int, sequence_length: int, earlier_domains: int) -> float:
        """One pass over the rows for the outputs, one for their scale."""
        del num_steps, earlier_domains
        return 2.0 * self.samples * sequence_length

    def end_stage(self, context: StageContext) -> None:
        """Measure how much the outputs move with every weight."""
        sensitivity = mean_over_rows(context, self.samples, self._per_row(context))
        fisher = fisher_information(context, self.samples)
        self.extra_tokens += 2 * self.samples * context.sequence_length
        scale = total(fisher) / max(total(sensitivity), 1e-30)
        importances = {name: value * scale for name, value in sensitivity.items()}
        if self.anchors:
            before = self.anchors[0].importances
            importances = {name: before[name] + value for name, value in importances.items()}
        self.anchors = [Anchor(weights_of(context.model), importances)]

    def _per_row(self, context: StageContext) -> Callable[[Batch], tuple[Tensor, Callable[[Tensor], Tensor]]]:
        def per_row(batch: Batch) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            return squared_output(context.model, batch, context.objective), lambda gradient: gradient.abs()

        return per_row


def squared_output(model: object, batch: Batch, objective: str) -> Tensor:
    """Mean over the predicted tokens of a batch of the squared length of the logits."""
    hidden_BTD = hidden_states(model, batch, objective)
    hidden_ND, _, _ = predicted_rows(hidden_BTD, batch["labels"], objective)
    settings = head_settings(model)
    logits_NV = hidden_ND @ settings["weight_VD"].T
    if settings["bias_V"] is not None:
        logits_NV = logits_NV + settings["bias_V"]
    squared: Tensor = logits_NV.float().square().sum(1).mean()
    return squared
