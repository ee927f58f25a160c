"""Which entries of a loss matrix a metric speaks about; all None-safe."""

from __future__ import annotations

import math
from collections.abc import Iterable

from lifelong.records import ComputeLedger, LossMatrix, RunHistory


def seen_columns(matrix: LossMatrix, stage: int) -> list[int]:
    """Columns of the domains trained on up to stage `stage`, in the order in which they were met."""
    return list(dict.fromkeys(matrix.stage_domains[: stage + 1]))


def earlier_columns(matrix: LossMatrix, stage: int) -> list[int]:
    """Seen columns without the one that stage `stage` itself trained on."""
    return [column for column in seen_columns(matrix, stage) if column != matrix.stage_domains[stage]]


def last_trained(matrix: LossMatrix, column: int, stage: int) -> int:
    """The last stage up to `stage` that trained on `column`; a domain may return."""
    return max(t for t in range(stage + 1) if matrix.stage_domains[t] == column)


def learned_and_now(matrix: LossMatrix) -> list[tuple[float, float]]:
    """(loss right after it was last trained on, loss now) of every earlier domain at the end."""
    if not matrix.stages:
        return []
    last = len(matrix.stages) - 1
    pairs = (
        (matrix.nats_per_token[last_trained(matrix, k, last)][k], matrix.nats_per_token[last][k])
        for k in earlier_columns(matrix, last)
    )
    return [(learned, now) for learned, now in pairs if learned is not None and now is not None]


def rises_above_best(matrix: LossMatrix) -> dict[int, float]:
    """Column of every earlier domain -> its loss now minus the best it ever was, under the initial model too."""
    if not matrix.stages:
        return {}
    last = len(matrix.stages) - 1
    rises = {}
    for column in earlier_columns(matrix, last):
        before = [row[column] for row in (matrix.initial, *matrix.nats_per_token[:last])]
        known = [loss for loss in before if loss is not None]
        now = matrix.nats_per_token[last][column]
        if known and now is not None:
            rises[column] = now - min(known)
    return rises


def rises_of_watched(matrix: LossMatrix) -> dict[str, float]:
    """Watched domain -> its loss now minus that of the initial model."""
    if not matrix.watched_nats_per_token:
        return {}
    pairs = zip(matrix.watched, matrix.watched_initial, matrix.watched_nats_per_token[-1], strict=True)
    return {name: now - base for name, base, now in pairs if base is not None and now is not None}


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the known values; None when there are none."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and all(map(math.isfinite, known)) else _not_finite(known)


def total_flops(history: RunHistory) -> float | None:
    """Floating-point operations over the committed stages; None before the first."""
    if not history.stages:
        return None
    return math.fsum(ComputeLedger.from_json(stage.cost).total.flops for stage in history.stages)


def perplexity(nats: float) -> float:
    """Exp of nats per token; infinite where a diverged loss has no finite perplexity."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def _not_finite(known: list[float]) -> float | None:
    return sum(known) / len(known) if known else None
