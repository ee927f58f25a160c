"""Summary of a run's figures, in words and in cells; shared by the terminal, Markdown and HTML."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lifelong.metrics import MetricInfo, compute_run, metric_info
from lifelong.plugins import remembered
from lifelong.records import NOT_TRAINED, ComputeLedger, Cost, LossMatrix, RunHistory
from lifelong.report import units

PHASES = ("grow", "recover", "train", "probe", "evaluate")
NAMED_DOMAINS = 8  # of a longer stream the verdict counts and names the extremes
LARGEST_EXPONENT = 700.0  # exp of more is not finite; a diverged model must be reported all the same
DEFAULT_BUDGET = 0.02  # without a budget, a rise of the perplexity by more than this counts as lost
KEPT, BROKEN = "kept", "BROKEN"
HEADLINE_METRICS = ("ap", "ap_plus", "forgetting", "bwt", "fwt")


class Cell(NamedTuple):
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
    return f"{value:.0f}" if value >= 1000 else f"{value:#.4g}"


@remembered
def cells(matrix: LossMatrix) -> list[list[Cell]]:
    """Rows -1, 0, 1, ... of the matrix with what each domain lost against its own best, the initial model's included.

    Before a domain of the stream is learned it has no rise; a watched one counts from the initial model on.
    """
    rows = [[Cell(value, None, False) for value in matrix.initial]]
    base = {column: value for column, value in enumerate(matrix.initial) if value is not None}
    best = dict(base) if NOT_TRAINED in matrix.stage_domains else {}
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
                best[column] = min(value, best.get(column, math.inf), base.get(column, math.inf))
        rows.append(line)
    return rows


def reading_note(history: RunHistory) -> str:
    """Which entries of the matrix are estimates from fewer documents; empty where none is."""
    rows = zip(history.matrix.stages, history.measured_losses[1:], strict=True)
    read = [(stage, loss) for stage, row in rows for loss in row if loss.tokens_read < loss.tokens]
    if not read:
        return ""
    stages = list(dict.fromkeys(stage for stage, _ in read))
    after = stages[0] if len(stages) == 1 else f"{len(stages)} stages, {stages[0]} to {stages[-1]},"
    part, whole = (
        f"{statistics.median_low(counts):,}"
        for counts in zip(*((one.tokens_read, one.tokens) for _, one in read), strict=True)
    )
    return (
        f"After {after} the domains that a stage did not learn and that have no budget were read in part (about {part} of "
        f"{whole} tokens each): their figures are the last whole reading and the difference from it on this part."
    )


def decision(history: RunHistory) -> str:
    """One line for the two questions with which training ends: what was learned, what was kept; and what follows."""
    matrix = history.matrix
    if not matrix.stages:
        return "Nothing was learned yet: only the base model has been evaluated."
    learned, budgets = learned_by_stage(matrix), {row.domain: row for row in budget_rows(history)}
    parts = [_named("Learned", [f"{name} {perplexity_of(old)} → {perplexity_of(new)}" for name, old, new in learned])]
    kept: list[str] = []
    lost: list[str] = []
    for name, rise in final_rises(matrix).items():
        budget = budgets.pop(name, None)
        allowed = DEFAULT_BUDGET if budget is None else budget.allowed
        text = f"{name} {_percent(rise)}" + (f" (budget {allowed:.1%})" if budget is not None else "")
        (kept if math.expm1(min(rise, LARGEST_EXPONENT)) <= allowed else lost).append(text)
    parts += [_named("Kept", kept), _named("Lost", lost)]
    return " ".join(part for part in (*parts, next_step(history)) if part)


def next_step(history: RunHistory) -> str:  # noqa: PLR0911 - one answer each
    """What follows: ship or not, or what has to be known first; empty before the first stage."""
    if not history.matrix.stages:
        return ""
    learned = learned_by_stage(history.matrix)
    broken = [row for row in budget_rows(history) if row.state == BROKEN]
    worse = [name for name, old, new in learned[-1:] if not new < old]
    if history.rejected:
        return f"Do not ship: {', '.join(history.rejected)} exceeded the forgetting budget and was not committed."
    if broken:
        return f"Do not ship: {', '.join(row.domain for row in broken)} is over its budget."
    if worse:
        return f"Do not ship: {', '.join(worse)} did not get better."
    if history.recipe.get("model", {}).get("checkpoint") and not history.matrix.watched:
        return "What the base model lost elsewhere was not measured: name it in `watch:`."
    if not history.recipe.get("budget"):
        return "No budget was set: whether that is good enough is yours to say (`budget:`)."
    return "Ship it."


def learned_by_stage(matrix: LossMatrix) -> list[tuple[str, float, float]]:
    """Domain of every stage with its loss before and after, in nats per token."""
    return [
        (matrix.domains[column], before, after)
        for stage, (column, row) in enumerate(zip(matrix.stage_domains, matrix.nats_per_token, strict=True))
        if (before := (matrix.nats_per_token[stage - 1] if stage else matrix.initial)[column]) is not None
        and (after := row[column]) is not None
    ]


def final_rises(matrix: LossMatrix) -> dict[str, float]:
    """Rise over their best, in nats, of watched domains and of those that an earlier stage learned."""
    rises: dict[str, float] = {}
    for block in (matrix.watched_matrix, matrix) if matrix.watched else (matrix,):
        last = cells(block)[-1]
        rises |= {
            name: cell.rise
            for name, cell in zip(block.domains, last, strict=True)
            if cell.rise is not None and not cell.trained and name not in rises
        }
    return rises


def _percent(rise: float) -> str:
    return f"{math.expm1(rise):+.1%}" if rise < math.log(100) else "more than hundredfold"


def _named(what: str, texts: Sequence[str]) -> str:
    rest = f" and {len(texts) - NAMED_DOMAINS} more" if len(texts) > NAMED_DOMAINS else ""
    return f"{what} {', '.join(texts[:NAMED_DOMAINS])}{rest}." if texts else ""


def verdict(history: RunHistory) -> str:
    """One or two sentences: what was learned, what was forgotten."""
    matrix = history.matrix
    if not matrix.stages:
        return "Nothing was learned yet: only the initial model has been evaluated."
    learned = learned_by_stage(matrix)
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
    return (
        f"Earlier domains ended {mean:+.3f} nats from their best on average; the worst is {worst} "
        f"({rise:+.3f} nats, perplexity {_percent(rise)})."
    )


class MetricRow(NamedTuple):
    """One metric as tables show it; `also` is the same on the other scale: perplexity beside nats."""

    name: str
    title: str
    value: str
    unit: str
    meaning: str
    also: str = ""


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
            (shown,), unit = units.column([value], info.unit)
            rows.append(MetricRow(name, info.title, shown, unit, info.description, _other_scale(name, value, info)))
    return rows


LEVELS = ("ap", "in_domain", "backward", "forward")  # losses themselves; all others in nats are differences of losses


def _other_scale(name: str, value: float, info: MetricInfo) -> str:
    """Nats per token of a perplexity, perplexity of nats; empty for anything else."""
    if not math.isfinite(value):
        return ""
    if name == "ap":
        return f"{math.log(value):.3f} nats/token" if value > 0 else ""
    if info.unit != "nats/token":
        return ""
    if name in LEVELS:
        return f"perplexity {perplexity_of(value)}"
    return f"perplexity {_percent(value if info.lower_is_better else -value)}"


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
    """The recipe's `budget:` against the last committed stage, from the best that a domain ever had."""
    budget = history.recipe.get("budget") or {}
    if not budget or not history.matrix.stages:
        return []
    rows = []
    for domain, allowed in budget.items():
        if (rise := _budgeted_rise(history, domain)) is None:
            rows.append(BudgetRow(domain, float(allowed), None, "not learned before the last stage"))
            continue
        rise = math.expm1(min(rise, LARGEST_EXPONENT))
        rows.append(BudgetRow(domain, float(allowed), rise, KEPT if rise <= float(allowed) else BROKEN))
    return rows


def _budgeted_rise(history: RunHistory, domain: str) -> float | None:
    """Loss of a domain now over the best before, in nats; None where nothing can have been forgotten yet.

    Of random weights a domain is known once a stage has learned it; a pre-trained base may know it from the start.
    """
    matrix = history.matrix
    learned = {matrix.domains[column] for column in matrix.stage_domains[:-1]}
    known = domain in matrix.watched or domain in learned or bool(history.recipe["model"].get("checkpoint"))
    if not known or domain not in (*matrix.domains, *matrix.watched):
        return None
    *before, now = matrix.series(domain)
    best = min((loss for loss in before if loss is not None), default=None)
    return None if best is None or now is None else now - best


def broken_promises(history: RunHistory) -> list[str]:
    """What the recipe promised of a finished run and did not come: expectations, and forgetting budgets."""
    if history.unfinished:
        return []
    found = [
        f"expected {item.metric} = {item.expected:g} ± {item.tolerance}, it is "
        + ("not measured" if item.value is None else f"{item.value:.4g}")
        for item in check_expectations(history, compute_run(history))
        if not item.met
    ]
    return found + [
        f"{row.domain} is over its forgetting budget: {row.rise:+.1%}, allowed are {row.allowed:.1%}"
        for row in budget_rows(history)
        if row.state == BROKEN and row.rise is not None
    ]


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
