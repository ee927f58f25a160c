"""Data of a run's charts as plain numbers: stages on an axis of tokens, and one curve per domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lifelong.plugins import remembered
from lifelong.records import ProbePoint, RunHistory

T = TypeVar("T")
Point = tuple[float, float]


@dataclass(frozen=True)
class Span:
    """One stage on the axis of tokens; training on its domain begins at `trained_from`, after recovery."""

    domain: str
    start: float
    trained_from: float
    end: float
    grown: bool


@dataclass
class LifeCurve:
    """Held-out loss of one domain: all points, those of full evaluations, and the parts in which it was learned."""

    points: list[Point] = field(default_factory=list)
    ends: list[Point] = field(default_factory=list)
    own: list[list[Point]] = field(default_factory=list)


def thinned(points: Sequence[T], most: int) -> list[T]:
    """Every n-th point and the last: what a line of that many pixels shows of a long life."""
    step = -(-len(points) // most) or 1
    return [*points[:-1:step], *points[-1:]]


def stage_ends(history: RunHistory) -> list[int]:
    """Tokens trained on when each stage ended."""
    ends, total = [], 0
    for record in history.stages:
        total += record.tokens
        ends.append(total)
    return ends


def stage_spans(history: RunHistory) -> list[Span]:
    """Every committed stage on the axis of tokens."""
    spans, start = [], 0
    for record in history.stages:
        recovered = int(record.cost.get("recover", {}).get("tokens", 0))
        end = start + record.tokens
        spans.append(Span(record.domain, start, start + recovered, end, record.expansion is not None))
        start = end
    return spans


@remembered
def life_curves(history: RunHistory) -> dict[str, LifeCurve]:
    """One curve per domain, in the order of the matrix, then of the watched domains.

    Probes look at a part of the documents that the full evaluations at the ends of stages look at. They are
    shifted so that the first and the last of a stage meet those; the points between keep their shape.
    """
    matrix, spans = history.matrix, stage_spans(history)
    curves = {}
    probed: list[dict[str, list[ProbePoint]]] = []
    for points in history.probes:
        by_domain: dict[str, list[ProbePoint]] = {}
        for point in points:
            by_domain.setdefault(point.domain, []).append(point)
        probed.append(by_domain)
    for name in dict.fromkeys((*matrix.domains, *matrix.watched)):
        curve = LifeCurve()
        before, *rows = matrix.series(name)
        if before is not None:
            curve.ends.append((0.0, before))
            curve.points.append((0.0, before))
        for stage, (span, after) in enumerate(zip(spans, rows, strict=True)):
            part = [(span.start, before)] if before is not None else []
            part += _shifted(probed[stage].get(name, []), span, before, after)
            if after is not None:
                part.append((span.end, after))
                curve.ends.append((span.end, after))
            curve.points += [point for point in part if not curve.points or point[0] > curve.points[-1][0]]
            if history.stages[stage].domain == name and len(part) > 1:
                curve.own.append([point for point in part if point[0] >= span.trained_from] or part)
            before = after
        curves[name] = curve
    return curves


def _shifted(probes: Sequence[ProbePoint], span: Span, before: float | None, after: float | None) -> list[Point]:
    """Probes of one domain inside a stage, moved to the level of the full evaluations around it."""
    if not probes or before is None or after is None:
        return []
    ordered = sorted(probes, key=lambda point: point.tokens)
    length = span.end - span.trained_from
    first, last = ordered[0], ordered[-1]
    at_start = before - first.nats_per_token if first.tokens == 0 else None
    at_end = after - last.nats_per_token if last.tokens >= length else None
    if at_start is None and at_end is None:
        return []
    at_start = at_end if at_start is None else at_start
    at_end = at_start if at_end is None else at_end
    assert at_start is not None
    assert at_end is not None
    return [
        (span.trained_from + p.tokens, p.nats_per_token + at_start + (at_end - at_start) * p.tokens / max(length, 1))
        for p in ordered
        if 0 < p.tokens < length
    ]
