"""Average increased perplexity, as a difference."""

from __future__ import annotations

from lifelong.metrics._entries import learned_and_now, mean, perplexity
from lifelong.records import LossMatrix

TITLE = "AP+"
DESCRIPTION = "rise of perplexity of earlier domains since each was last trained on (mean difference)"
UNIT = "perplexity"
LOWER_IS_BETTER = True
GROUP = "kept"


def compute(matrix: LossMatrix) -> float | None:
    """`mean over earlier k of (PPL[T][k] - PPL[k][k])`; positive when domains got worse.

    Source: Qin et al. 2022, ELLE (arXiv 2203.06311).
    """
    return mean(perplexity(now) - perplexity(learned) for learned, now in learned_and_now(matrix))
