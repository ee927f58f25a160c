"""Summary of a run's figures, in words and in cells; shared by the terminal, Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lifelong.metrics import metric_info
from lifelong.records import ComputeLedger, Cost, LossMatrix, RunHistory

PHASES = ("grow", "recover", "train", "probe", "evaluate")
NAMED_DOMAINS = 8  # of a longer stream the verdict counts and names the extremes
LARGEST_EXPONENT = 700.0  # exp of more is not finite; a diverged model must be reported all the same
HEADLINE_METRICS = ("ap", "ap_plus", "forgetting", "bwt", "fwt")


@dataclass(frozen=True)
class Cell:
    """One entry of the matrix. `rise` is now minus the best so far, in nats; None before the domain was learned."""

    nats: float | None
    rise: float | None
    trained: bool

    @property
    def text(self) -> str:
        """Perplexity, short."""
        return "–" if self.nats is None else perplexity_of(self.nats)


def perplexity_of(nats: float) -> str:
    """Perplexity of a loss, also where it is not finite."""
    if math.isnan(nats):
        return "nan"
    return format_perplexity(math.exp(nats)) if nats < LARGEST_EXPONENT else "> 1e304"


def format_perplexity(value: float) -> str:
    """Four significant digits, no exponent below a million."""
    if value >= 1e6:
        return f"{value:.1e}"
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def cells(matrix: LossMatrix) -> list[list[Cell]]:
    """Rows -1, 0, 1, ... of the matrix with what each domain lost against its own best."""
    rows = [[Cell(value, None, False) for value in matrix.initial]]
    best: dict[int, float] = {}
    for stage, row in enumerate(matrix.nats_per_token):
        line = []
        for column, value in enumerate(row):
            known = best.get(column)
            line.append(
                Cell(
                    value,
                    None if known is None or value is None else value - known,
                    column == matrix.stage_domains[stage],
                )
            )
        for column, value in enumerate(row):
            if value is not None and (column in best or column == matrix.stage_domains[stage]):
                best[column] = min(value, best.get(column, math.inf))
        rows.append(line)
    return rows


def verdict(history: RunHistory) -> str:
    """One or two sentences: what was learned, what was forgotten."""
    matrix = history.matrix
    if not matrix.stages:
        return "Nothing was learned yet: only the initial model has been evaluated."
    learned = [
        (matrix.domains[column], before, after)
        for stage, (column, row) in enumerate(zip(matrix.stage_domains, matrix.nats_per_token, strict=True))
        if (before := (matrix.nats_per_token[stage - 1] if stage else matrix.initial)[column]) is not None
        and (after := row[column]) is not None
    ]
    rises = [
        (matrix.domains[k], cell.rise)
        for k, cell in enumerate(cells(matrix)[-1])
        if cell.rise is not None and not cell.trained
    ]
    return f"{_learned(learned)} {_forgotten(rises)}".strip()


def _learned(learned: list[tuple[str, float, float]]) -> str:
    """Sentence on what each domain gained while it was learned; the extremes of a long stream."""
    if not learned:
        return ""
    if len(learned) <= NAMED_DOMAINS:
        gains = ", ".join(f"{name} {perplexity_of(old)} → {perplexity_of(new)}" for name, old, new in learned)
        return f"Perplexity on each domain as it was learned: {gains}."
    fell = sum(new < old for _, old, new in learned)
    most, least = (choose(learned, key=lambda item: item[1] - item[2]) for choose in (max, min))
    parts = [f"{name} ({perplexity_of(old)} → {perplexity_of(new)})" for name, old, new in (most, least)]
    return (
        f"Perplexity fell in {fell} of {len(learned)} stages on their own domain, most on {parts[0]}, "
        f"least on {parts[1]}."
    )


def _forgotten(rises: list[tuple[str, float]]) -> str:
    """Sentence on how far earlier domains ended from their best."""
    if not rises:
        return ""
    worst, rise = max(rises, key=lambda item: item[1])
    if rise <= 0:
        return "Nothing was forgotten: every earlier domain ended at or below its best so far."
    mean = sum(rise for _, rise in rises) / len(rises)
    ratio = f"{math.expm1(rise):+.1%}" if rise < math.log(100) else "more than hundredfold"
    return (
        f"Earlier domains ended {mean:+.3f} nats from their best on average; the worst is {worst} "
        f"({rise:+.3f} nats, perplexity {ratio})."
    )


class MetricRow(NamedTuple):
    """One metric as tables show it."""

    name: str
    title: str
    value: str
    unit: str
    meaning: str


def metric_rows(metrics: Mapping[str, float | None]) -> list[MetricRow]:
    """Every metric that is defined, headline ones first."""
    order = [name for name in HEADLINE_METRICS if name in metrics] + [
        name for name in metrics if name not in HEADLINE_METRICS
    ]
    rows = []
    for name in order:
        value = metrics[name]
        if value is not None:
            info = metric_info(name)
            shown = f"{value:.3e}" if abs(value) >= 1e6 else f"{value:.4g}"
            rows.append(MetricRow(name, info.title, shown, info.unit, info.description))
    return rows


def phase_costs(history: RunHistory) -> dict[str, Cost]:
    """Cost of every phase over all stages, in the order in which a stage goes through them."""
    phases: dict[str, Cost] = {}
    for record in history.stages:
        for phase, cost in ComputeLedger.from_json(record.cost).phases.items():
            phases[phase] = phases.get(phase, Cost()) + cost
    order = [*(phase for phase in PHASES if phase in phases), *(phase for phase in phases if phase not in PHASES)]
    return {phase: phases[phase] for phase in order}


class BudgetRow(NamedTuple):
    """A forgetting budget and how much of it is used; `rise` is relative, of perplexity over the domain's best."""

    domain: str
    allowed: float
    rise: float | None
    state: str


def budget_rows(history: RunHistory) -> list[BudgetRow]:
    """The recipe's `budget:` against the last committed stage."""
    budget = history.recipe.get("budget") or {}
    if not budget or not history.matrix.stages:
        return []
    last = cells(history.matrix)[-1]
    rows = []
    for domain, allowed in budget.items():
        cell = last[history.matrix.domains.index(domain)] if domain in history.matrix.domains else None
        if cell is None or cell.rise is None:
            rows.append(BudgetRow(domain, float(allowed), None, "not learned before the last stage"))
            continue
        rise = math.expm1(min(cell.rise, LARGEST_EXPONENT))
        rows.append(BudgetRow(domain, float(allowed), rise, "kept" if rise <= float(allowed) else "BROKEN"))
    return rows


@dataclass(frozen=True)
class Expectation:
    """A value that the recipe promises, and what came out."""

    metric: str
    expected: float
    tolerance: str
    value: float | None
    met: bool

    @property
    def deviation(self) -> str:
        """Deviation of the value from the expected one, absolute and relative."""
        if self.value is None:
            return "not measured"
        difference = self.value - self.expected
        relative = f" ({difference / abs(self.expected):+.1%})" if self.expected else ""
        return f"{difference:+.4g}{relative}"


def check_expectations(history: RunHistory, metrics: Mapping[str, float | None]) -> list[Expectation]:
    """The recipe's `expect:` against the run; a tolerance that ends in % is relative."""
    found = []
    for name, entry in (history.recipe.get("expect") or {}).items():
        value, expected, tolerance = metrics.get(name), float(entry["value"]), str(entry.get("tolerance", "5%"))
        room = abs(expected) * float(tolerance[:-1]) / 100 if tolerance.endswith("%") else float(tolerance)
        found.append(Expectation(name, expected, tolerance, value, value is not None and abs(value - expected) <= room))
    return found
