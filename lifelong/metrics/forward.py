"""Forward loss: every stage on the domains still to come."""

from __future__ import annotations

from lifelong.metrics._entries import mean, seen_columns
from lifelong.records import LossMatrix

TITLE = "Forward loss"
DESCRIPTION = "mean loss of every stage on the domains not yet trained on"
UNIT = "nats/token"
LOWER_IS_BETTER = True
GROUP = "transferred"


def compute(matrix: LossMatrix) -> float | None:
    """Mean of `R[t][k]` over all stages t and domains k that are met only after t.

    Source: Li et al. 2025, TiC-LM (arXiv 2504.02107).
    """
    entries = []
    for t, row in enumerate(matrix.nats_per_token):
        seen = set(seen_columns(matrix, t))
        entries += [loss for k, loss in enumerate(row) if k not in seen]
    return mean(entries)
