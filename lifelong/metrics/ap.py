"""Average perplexity over the domains seen so far."""

from __future__ import annotations

from lifelong.metrics._entries import mean, perplexity, seen_columns
from lifelong.records import LossMatrix

TITLE = "AP"
DESCRIPTION = "average perplexity now: exp of the mean loss over all domains trained on so far"
UNIT = "perplexity"
LOWER_IS_BETTER = True
GROUP = "learned"


def compute(matrix: LossMatrix) -> float | None:
    """`exp(mean over seen k of R[T][k])`, each domain counted once.

    Source: Qin et al. 2022, ELLE (arXiv 2203.06311).
    """
    if not matrix.stages:
        return None
    last = len(matrix.stages) - 1
    loss = mean(matrix.nats_per_token[last][k] for k in seen_columns(matrix, last))
    return None if loss is None else perplexity(loss)
