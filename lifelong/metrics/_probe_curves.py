"""Losses of earlier domains inside a stage, from its probes.

The stability gap is the rise of an old domain in the first steps of a new stage, most of which is recovered
later in the same stage; it cannot be seen in the loss matrix, which looks at the ends of stages only.

Source: De Lange et al. 2023 (arXiv 2205.13452).
"""

from __future__ import annotations

from collections.abc import Iterator

from lifelong.metrics._entries import earlier_columns
from lifelong.records import LossMatrix, RunHistory

Curve = list[tuple[int, float]]


def earlier_domain_curves(history: RunHistory) -> Iterator[tuple[int, float, Curve]]:
    """Curves of every stage and earlier domain with probes: (stage, loss before the stage, [(tokens, loss), ...]).

    The loss before the stage is the probe at token 0 where there is one, so that it is measured on the same
    documents as the others; else the entry of the loss matrix.
    """
    matrix = history.matrix
    for stage, points in enumerate(history.probes):
        for column in earlier_columns(matrix, stage):
            curve = sorted((p.tokens, p.nats_per_token) for p in points if p.domain == matrix.domains[column])
            start = _start(matrix, stage, column, curve)
            after = [(tokens, loss) for tokens, loss in curve if tokens > 0]
            if start is not None and after:
                yield stage, start, after


def _start(matrix: LossMatrix, stage: int, column: int, curve: Curve) -> float | None:
    if curve and curve[0][0] == 0:
        return curve[0][1]
    return matrix.nats_per_token[stage - 1][column]
