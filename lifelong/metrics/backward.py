"""Backward loss: every stage on the domains before it."""

from __future__ import annotations

from lifelong.metrics._entries import earlier_columns, mean
from lifelong.records import LossMatrix

TITLE = "Backward loss"
DESCRIPTION = "mean loss of every stage on the domains trained on before it"
UNIT = "nats/token"
LOWER_IS_BETTER = True
GROUP = "transferred"


def compute(matrix: LossMatrix) -> float | None:
    """Mean of `R[t][k]` over all stages t and domains k met before t.

    Source: Li et al. 2025, TiC-LM (arXiv 2504.02107).
    """
    return mean(row[k] for t, row in enumerate(matrix.nats_per_token) for k in earlier_columns(matrix, t))
