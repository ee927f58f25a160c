"""Losses of earlier domains inside a stage, from its probes.

The stability gap is the rise of an old domain in the first steps of a new stage, most of which is recovered
later in the same stage; it cannot be seen in the loss matrix, which looks at the ends of stages only.

Source: De Lange et al. 2023 (arXiv 2205.13452).
"""

from __future__ import annotations

from lifelong.plugins import remembered
from lifelong.records import LossMatrix, RunHistory

Curve = list[tuple[int, float]]


@remembered
def earlier_domain_curves(history: RunHistory) -> list[tuple[int, float, Curve]]:
    """Curves of every stage and earlier domain with probes: (stage, loss before the stage, [(tokens, loss), ...]).

    The loss before the stage is the probe at token 0 where there is one, so that it is measured on the same
    documents as the others; else the entry of the loss matrix.
    """
    matrix, found = history.matrix, []
    seen = dict[int, None]()
    for stage, points in enumerate(history.probes):
        probed: dict[str, Curve] = {}
        for point in points:
            probed.setdefault(point.domain, []).append((point.tokens, point.nats_per_token))
        seen[matrix.stage_domains[stage]] = None
        for column in seen:
            curve = sorted(probed.get(matrix.domains[column], ()))
            if column == matrix.stage_domains[stage] or not curve:
                continue
            start = _start(matrix, stage, column, curve)
            after = [(tokens, loss) for tokens, loss in curve if tokens > 0]
            if start is not None and after:
                found.append((stage, start, after))
    return found


def _start(matrix: LossMatrix, stage: int, column: int, curve: Curve) -> float | None:
    if curve[0][0] == 0:
        return curve[0][1]
    return matrix.nats_per_token[stage - 1][column]
