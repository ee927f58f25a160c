"""Forward transfer: what earlier stages did for a domain before it was trained on."""

from __future__ import annotations

from lifelong.metrics._entries import mean, seen_columns
from lifelong.records import LossMatrix

TITLE = "FWT"
DESCRIPTION = "forward transfer: loss of the initial model minus loss just before a domain was first trained on"
UNIT = "nats/token"
LOWER_IS_BETTER = False
GROUP = "transferred"


def compute(matrix: LossMatrix) -> float | None:
    """`mean over k met after the first stage of (R[-1][k] - R[t_k - 1][k])`, t_k the first stage on k.

    Positive when the stages before helped. A randomly initialised model makes it large, as any
    training helps then; compare it only between runs that start from the same model.

    Source: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), equation 4, with losses in place of accuracies.
    """
    gains = []
    for column in seen_columns(matrix, len(matrix.stages) - 1):
        first = matrix.stage_domains.index(column)
        if first == 0:
            continue
        start, before = matrix.initial[column], matrix.nats_per_token[first - 1][column]
        if start is not None and before is not None:
            gains.append(start - before)
    return mean(gains)
