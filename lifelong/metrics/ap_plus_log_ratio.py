"""Average increased perplexity, as a log-ratio: no domain with a large perplexity dominates it."""

from __future__ import annotations

from lifelong.metrics._entries import learned_and_now, mean
from lifelong.records import LossMatrix

TITLE = "AP+ (log-ratio)"
DESCRIPTION = "rise of the loss of earlier domains since each was last trained on (mean difference of nats)"
UNIT = "nats/token"
LOWER_IS_BETTER = True
GROUP = "kept"


def compute(matrix: LossMatrix) -> float | None:
    """`mean over earlier k of (R[T][k] - R[k][k])`; positive when domains got worse."""
    return mean(now - learned for learned, now in learned_and_now(matrix))
