"""Base forgetting of the watched domain that suffered most."""

from __future__ import annotations

from lifelong.metrics._entries import rises_of_watched
from lifelong.records import LossMatrix

TITLE = "Worst base forgetting"
DESCRIPTION = "the largest rise of any watched domain above the base model"
UNIT = "nats/token"
LOWER_IS_BETTER = True
GROUP = "kept"


def compute(matrix: LossMatrix) -> float | None:
    """`max over watched k of (R[T][k] - R[-1][k])`."""
    return max(rises_of_watched(matrix).values(), default=None)
