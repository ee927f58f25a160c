"""Loss per FLOP: how much a run improved for what it computed."""

from __future__ import annotations

from lifelong.metrics._entries import mean, seen_columns, total_flops
from lifelong.records import RunHistory

TITLE = "Gain per PFLOP"
DESCRIPTION = "fall of the mean loss over the seen domains since the initial model, per 10^15 FLOP"
UNIT = "nats/token/PFLOP"
LOWER_IS_BETTER = False
GROUP = "cost"


def compute_history(history: RunHistory) -> float | None:
    """`mean over seen k of (R[-1][k] - R[T][k])`, divided by the FLOPs of the run in units of 10^15."""
    flops, matrix = total_flops(history), history.matrix
    if not flops or not matrix.stages:
        return None
    last = len(matrix.stages) - 1
    falls = []
    for column in seen_columns(matrix, last):
        start, now = matrix.initial[column], matrix.nats_per_token[last][column]
        if start is not None and now is not None:
            falls.append(start - now)
    fall = mean(falls)
    return None if fall is None else fall / (flops / 1e15)
