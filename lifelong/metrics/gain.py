"""Plasticity: what each stage gained on its own domain."""

from __future__ import annotations

from lifelong.metrics._entries import mean
from lifelong.records import LossMatrix

TITLE = "Gain"
DESCRIPTION = "plasticity: fall of the loss on a stage's own domain during that stage (mean over stages)"
UNIT = "nats/token"
LOWER_IS_BETTER = False
GROUP = "learned"


def compute(matrix: LossMatrix) -> float | None:
    """Mean over stages of `R[t-1][k_t] - R[t][k_t]`; positive when the stage learned."""
    before = (matrix.initial, *matrix.nats_per_token)
    gains = []
    for t, column in enumerate(matrix.stage_domains):
        old, new = before[t][column], matrix.nats_per_token[t][column]
        if old is not None and new is not None:
            gains.append(old - new)
    return mean(gains)
