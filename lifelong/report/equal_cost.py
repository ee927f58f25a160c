"""Comparison at equal cost: tokens, FLOPs or seconds of training.

A more expensive method gets less far in the stream for the same budget. The figure is the mean of bits per byte over all
domains of the stream, learned or not, on a straight line between the evaluations at the ends of stages; what
evaluation and probes cost is left out, because they are the measurement and not the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from lifelong.metrics import MetricInfo, metric_info
from lifelong.records import ComputeLedger, RunHistory

MEASURING = ("probe", "evaluate")
FIELDS = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}
PREFIX = "bits_at_equal_"
NAMES = tuple(PREFIX + field for field in FIELDS)


def info_of(name: str) -> MetricInfo:
    """Title, unit and direction of a metric, or of a figure at equal cost."""
    if name not in NAMES:
        return metric_info(name)
    spent = FIELDS[name.removeprefix(PREFIX)]
    return MetricInfo(
        name,
        f"At equal {spent}",
        f"mean bits per byte over the whole stream when the training of every run had taken the {spent} of the cheapest",
        "bits/byte",
        lower_is_better=True,
        needs_history=True,
    )


def trajectory(history: RunHistory, field: str) -> list[tuple[float, float]]:
    """(cost of training so far, mean bits per byte over the stream's domains) before and after every stage."""
    matrix = history.matrix
    columns = sorted(set(matrix.stage_domains))
    rows = (matrix.initial_bits_per_byte, *matrix.bits_per_byte)
    points, spent = [], 0.0
    for stage, row in enumerate(rows):
        if stage:
            phases = ComputeLedger.from_json(history.stages[stage - 1].cost).phases
            spent += sum(getattr(cost, field) for phase, cost in phases.items() if phase not in MEASURING)
        known = [value for column in columns if column < len(row) and (value := row[column]) is not None]
        if len(known) == len(columns) and known:
            points.append((spent, sum(known) / len(known)))
    return points


def at_budget(points: Sequence[tuple[float, float]], budget: float) -> float | None:
    """The figure at a budget, on a straight line between two evaluations; None outside of them."""
    for (low, before), (high, after) in pairwise(points):
        if low <= budget <= high:
            return before + (after - before) * (budget - low) / (high - low) if high > low else after
    return None


def equal_cost_values(groups: Sequence[Sequence[RunHistory]], field: str) -> list[list[float | None]]:
    """Figure of every run of every group at the budget of the cheapest run."""
    curves = [[trajectory(run, field) for run in group] for group in groups]
    ends = [points[-1][0] for group in curves for points in group if points]
    if not ends:
        return [[None for _ in group] for group in groups]
    return [[at_budget(points, min(ends)) for points in group] for group in curves]
