"""Base forgetting: how far watched domains are from what the base model was on them."""

from __future__ import annotations

from lifelong.metrics._entries import mean, rises_of_watched
from lifelong.records import LossMatrix

TITLE = "Base forgetting"
DESCRIPTION = "loss of watched domains now minus that of the base model (mean)"
UNIT = "nats/token"
LOWER_IS_BETTER = True
GROUP = "kept"


def compute(matrix: LossMatrix) -> float | None:
    """`mean over watched k of (R[T][k] - R[-1][k])`; positive when the base model lost something."""
    return mean(rises_of_watched(matrix).values())
