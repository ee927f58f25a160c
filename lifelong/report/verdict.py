"""What a run's figures say, in words and in cells; shared by the terminal, Markdown and HTML."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lifelong.metrics import metric_info
from lifelong.records import ComputeLedger, Cost, LossMatrix, RunHistory

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
        return "–" if self.nats is None else format_perplexity(math.exp(min(self.nats, 700.0)))


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
        (matrix.domains[column], before, row[column])
        for stage, (column, row) in enumerate(zip(matrix.stage_domains, matrix.nats_per_token, strict=True))
        if (before := (matrix.nats_per_token[stage - 1] if stage else matrix.initial)[column]) is not None
    ]
    gains = ", ".join(
        f"{name} {format_perplexity(math.exp(before))} → {format_perplexity(math.exp(after))}"
        for name, before, after in learned
        if after is not None
    )
    last = cells(matrix)[-1]
    rises = [
        (matrix.domains[k], cell.rise) for k, cell in enumerate(last) if cell.rise is not None and not cell.trained
    ]
    text = f"Perplexity on each domain as it was learned: {gains}."
    if not rises:
        return text
    worst, rise = max(rises, key=lambda item: item[1])
    if rise <= 0:
        return f"{text} Nothing was forgotten: every earlier domain ended at or below its best so far."
    mean = sum(rise for _, rise in rises) / len(rises)
    return (
        f"{text} Earlier domains ended {mean:+.3f} nats from their best on average; the worst is {worst} "
        f"({rise:+.3f} nats, perplexity {math.expm1(rise):+.1%})."
    )


def metric_rows(metrics: dict[str, float | None]) -> list[tuple[str, str, str, str]]:
    """Title, value, unit and description of every metric that is defined, headline ones first."""
    order = [name for name in HEADLINE_METRICS if name in metrics] + [
        name for name in metrics if name not in HEADLINE_METRICS
    ]
    rows = []
    for name in order:
        value = metrics[name]
        if value is not None:
            info = metric_info(name)
            shown = f"{value:.3e}" if abs(value) >= 1e6 else f"{value:.4g}"
            rows.append((info.title, shown, info.unit, info.description))
    return rows


def phase_costs(history: RunHistory) -> dict[str, Cost]:
    """Cost of every phase over all stages."""
    phases: dict[str, Cost] = {}
    for record in history.stages:
        for phase, cost in ComputeLedger.from_json(record.cost).phases.items():
            phases[phase] = phases.get(phase, Cost()) + cost
    return phases


@dataclass(frozen=True)
class Expectation:
    """A value that the recipe promises, and what came out."""

    metric: str
    expected: float
    tolerance: str
    value: float | None
    met: bool


def check_expectations(history: RunHistory, metrics: dict[str, float | None]) -> list[Expectation]:
    """The recipe's `expect:` against the run; a tolerance that ends in % is relative."""
    found = []
    for name, entry in (history.recipe.get("expect") or {}).items():
        value, expected, tolerance = metrics.get(name), float(entry["value"]), str(entry.get("tolerance", "5%"))
        room = abs(expected) * float(tolerance[:-1]) / 100 if tolerance.endswith("%") else float(tolerance)
        found.append(Expectation(name, expected, tolerance, value, value is not None and abs(value - expected) <= room))
    return found
