"""In-domain loss: every stage on its own domain."""

from __future__ import annotations

from lifelong.metrics._entries import mean
from lifelong.records import LossMatrix

TITLE = "In-domain loss"
DESCRIPTION = "mean loss of every stage on the domain it has just trained on (the diagonal)"
UNIT = "nats/token"
LOWER_IS_BETTER = True
GROUP = "learned"


def compute(matrix: LossMatrix) -> float | None:
    """Mean over stages of `R[t][k_t]`.

    Source: Li et al. 2025, TiC-LM (arXiv 2504.02107).
    """
    return mean(row[k] for row, k in zip(matrix.nats_per_token, matrix.stage_domains, strict=True))
