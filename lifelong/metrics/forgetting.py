"""Forgetting: how far earlier domains are from the best they ever were."""

from __future__ import annotations

from lifelong.metrics._entries import mean, rises_above_best
from lifelong.records import LossMatrix

TITLE = "Forgetting"
DESCRIPTION = "loss of earlier domains now minus the best they ever were, under the base model too (mean)"
UNIT = "nats/token"
LOWER_IS_BETTER = True
GROUP = "kept"


def compute(matrix: LossMatrix) -> float | None:
    """`mean over earlier k of (R[T][k] - min over -1 <= t < T of R[t][k])`; positive when domains got worse.

    Source: Chaudhry et al. 2018 (arXiv 1801.10112), with losses in place of accuracies. Row -1 counts too: a
    pre-trained model knows something before the stream. Where training starts from random weights it changes nothing.
    """
    return mean(rises_above_best(matrix).values())
