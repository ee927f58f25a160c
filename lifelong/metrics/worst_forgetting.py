"""Forgetting of the domain that suffered most."""

from __future__ import annotations

from lifelong.metrics._entries import rises_above_best
from lifelong.records import LossMatrix

TITLE = "Worst forgetting"
DESCRIPTION = "the largest rise of any earlier domain above the best it ever was"
UNIT = "nats/token"
LOWER_IS_BETTER = True
GROUP = "kept"


def compute(matrix: LossMatrix) -> float | None:
    """`max over earlier k of (R[T][k] - min over -1 <= t < T of R[t][k])`."""
    return max(rises_above_best(matrix).values(), default=None)
