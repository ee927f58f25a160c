"""Backward transfer: what later stages did for the domains before them."""

from __future__ import annotations

from lifelong.metrics._entries import learned_and_now, mean
from lifelong.records import LossMatrix

TITLE = "BWT"
DESCRIPTION = "backward transfer: loss right after an earlier domain was trained on, minus its loss now"
UNIT = "nats/token"
LOWER_IS_BETTER = False
GROUP = "transferred"


def compute(matrix: LossMatrix) -> float | None:
    """`mean over earlier k of (R[k][k] - R[T][k])`; positive when later stages helped.

    Source: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), equation 3, with losses in place of accuracies.
    """
    return mean(learned - now for learned, now in learned_and_now(matrix))
