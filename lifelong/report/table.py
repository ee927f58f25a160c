"""Tables for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from lifelong.metrics import compute_run
from lifelong.records import NATS_PER_BIT, NOT_TRAINED, DomainLoss, ExpansionReport, Front, LossMatrix, RunHistory
from lifelong.report.chat import chat_table, chat_warning, named_scores
from lifelong.report.downstream import score_table
from lifelong.report.tradeoff import tradeoffs
from lifelong.report.uncertainty import loss_interval
from lifelong.report.verdict import (
    Cell,
    budget_rows,
    cells,
    check_expectations,
    decision,
    metric_rows,
    perplexity_of,
    phase_costs,
    reading_note,
    verdict,
)

NOTICEABLE_NATS = 0.02
DOMAIN_ROWS = 30


def run_tables(history: RunHistory) -> list[RenderableType]:
    """Matrix, metrics, cost and verdict of a run."""
    metrics = compute_run(history)
    parts: list[RenderableType] = [MatrixView(history)]
    if history.matrix.watched:
        parts.append(MatrixView(history, history.matrix.watched_matrix))
    parts += [metrics_table(metrics), cost_table(history)]
    for title, (heads, rows) in {"tasks": score_table(history), "chat": chat_table(named_scores(history))}.items():
        if rows:
            parts.append(plain_table(title, heads, rows))
    if warning := chat_warning(history):
        parts.append(Text(f"warning: {warning}", style="yellow"))
    for item in check_expectations(history, metrics):
        mark = "met" if item.met else "NOT met"
        value = "not measured" if item.value is None else f"{item.value:.4g}, {item.deviation}"
        parts.append(f"expected {item.metric} = {item.expected:g} ± {item.tolerance}: {value}, {mark}")
    for row in budget_rows(history):
        rise = "not measured" if row.rise is None else f"{row.rise:+.1%}"
        parts.append(f"budget {row.domain} {row.allowed:.1%}: {rise}, {row.state}")
    parts.append(Text(verdict(history)))
    if history.unfinished:
        parts.append(Text(f"unfinished: {_listed(history.unfinished)} not committed yet", style="yellow"))
    return [*parts, Text(decision(history), style="bold")]


class MatrixView:
    """The loss matrix as wide as the terminal allows: with rises, without them, or one row a domain."""

    def __init__(self, history: RunHistory, matrix: LossMatrix | None = None) -> None:
        self.history, self.matrix = history, matrix or history.matrix

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Choose by the width at hand."""
        matrix = self.matrix
        forms = (True, False) if max(len(matrix.stages), len(matrix.domains)) <= DOMAIN_ROWS else ()
        for with_rises in forms:
            table = matrix_table(self.history, matrix, with_rises=with_rises)
            if console.measure(table, options=options.update(max_width=10_000)).maximum <= options.max_width:
                yield table
                return
        yield domains_table(self.history, matrix)


def matrix_table(history: RunHistory, matrix: LossMatrix | None = None, *, with_rises: bool = True) -> Table:
    """Held-out perplexity after every stage; red: above the domain's best, green: at or below it.

    Args:
        history: of the run.
        matrix: the run's where not given, or that of its watched domains.
        with_rises: print the rises too.
    """
    matrix = matrix or history.matrix
    caption = "(rise over the domain's best so far, in nats)" if with_rises else "red: above the domain's best so far"
    table = Table(title=f"{history.name}: {_measured(matrix)}", caption=caption)
    table.add_column("after")
    for name in matrix.domains:
        table.add_column(name, justify="right")
    if matrix is history.matrix and (note := reading_note(history)):
        table.caption = f"{caption}\n{note}"
    for label, row in zip(("initial", *matrix.stages), cells(matrix), strict=True):
        line = []
        for cell in row:
            text = Text(cell.text, style="bold" if cell.trained else "")
            if cell.rise is not None:
                style = "red" if cell.rise > NOTICEABLE_NATS else "green"
                if with_rises:
                    text.append(f" ({cell.rise:+.2f})", style=style)
                else:
                    text.stylize(style)
            line.append(text)
        table.add_row(label, *line)
    return table


def _measured(matrix: LossMatrix) -> str:
    return "watched, never trained on" if NOT_TRAINED in matrix.stage_domains else "held-out perplexity"


def domains_table(history: RunHistory, matrix: LossMatrix | None = None) -> Table:
    """One row a domain: initial, right after it was learned, now; of many domains those that rose most."""
    matrix = matrix or history.matrix
    last = cells(matrix)[-1]
    order = list(range(len(matrix.domains)))
    caption = "perplexity; rise over the domain's best so far, in nats"
    if len(order) > DOMAIN_ROWS:
        order.sort(key=lambda k: -(last[k].rise if last[k].rise is not None else -math.inf))  # type: ignore[operator]
        caption += f"; {len(order) - DOMAIN_ROWS} of {len(order)} domains, those that rose least, are in report.md"
    table = Table(title=f"{history.name}: {_measured(matrix)}, after {len(matrix.stages)} stages", caption=caption)
    for heading in ("domain", "learned in", "initial", "learned", "now", "rise"):
        table.add_column(heading, justify="left" if heading == "domain" else "right", overflow="fold")
    for column in order[:DOMAIN_ROWS]:
        stages = [t for t, k in enumerate(matrix.stage_domains) if k == column]
        learned = Cell(matrix.nats_per_token[stages[-1]][column] if stages else None, None, False)
        rise = last[column].rise
        table.add_row(
            matrix.domains[column],
            str(stages[-1]) if stages else "–",
            Cell(matrix.initial[column], None, False).text,
            learned.text,
            last[column].text,
            "–" if rise is None else Text(f"{rise:+.2f}", style="red" if rise > NOTICEABLE_NATS else "green"),
        )
    return table


def plain_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of texts; the first column is a name."""
    table = Table(title=title)
    for index, heading in enumerate(heads):
        table.add_column(heading, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def text_table(losses: Mapping[str, Mapping[str, float]]) -> Table:
    """Held-out nats per token of several models: one row a model, one column a domain."""
    domains = list(dict.fromkeys(domain for row in losses.values() for domain in row))
    rows = [[name, *(f"{row[k]:.4f}" if k in row else "–" for k in domains)] for name, row in losses.items()]
    return plain_table("held-out loss, nats per token", ["model", *domains], rows)


def _listed(names: Sequence[str], limit: int = 6) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def metrics_table(metrics: Mapping[str, float | None]) -> Table:
    """Metrics of the run."""
    table = Table(title="metrics")
    for heading in ("metric", "value", "unit"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for row in metric_rows(metrics):
        table.add_row(row.title, row.value, row.unit)
    return table


def cost_table(history: RunHistory) -> Table:
    """Cost by phase over the whole run."""
    table = Table(title="cost")
    for heading in ("phase", "tokens", "PFLOPs", "of which teacher", "seconds"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for phase, cost in phase_costs(history).items():
        table.add_row(
            phase,
            f"{cost.tokens:,}",
            f"{cost.flops / 1e15:.3g}",
            f"{cost.teacher_flops / 1e15:.3g}",
            f"{cost.seconds:.1f}",
        )
    return table


def losses_table(losses: Sequence[DomainLoss], model: str = "") -> Table:
    """Held-out losses of one model, with their 95 % intervals over documents."""
    table = Table(title=f"held-out loss{model and f' of {model}'}", caption="below each figure: 95 % over documents")
    for heading in ("domain", "perplexity", "nats/token", "bits/byte", "tokens"):
        table.add_column(heading, justify="left" if heading == "domain" else "right")
    for loss in losses:
        bounds = loss_interval(loss)
        low, high = (bounds.low, bounds.high) if bounds else (None, None)
        rows = zip(*(_three_scales(loss, nats) for nats in (loss.nats_per_token, low, high)), strict=True)
        cells_of = [mean + (f"\n{least} to {most}" if bounds else "") for mean, least, most in rows]
        table.add_row(loss.domain, *cells_of, f"{loss.tokens:,}")
    return table


def _three_scales(loss: DomainLoss, nats: float | None) -> tuple[str, str, str]:
    """Nats per token as perplexity, as they are, and as bits per byte of the documents of `loss`."""
    if nats is None:
        return "", "", ""
    bits = nats * loss.tokens / NATS_PER_BIT / loss.bytes
    return perplexity_of(nats), f"{nats:.4f}", f"{bits:.4f}"


def expansion_table(report: ExpansionReport) -> Table:
    """Table of a growth: what it did and how far the function moved."""
    table = Table(title=f"growth of a {report.family} model, mode {report.mode}", show_header=False)
    for axis, before in report.source.items():
        after = report.target[axis]
        table.add_row(axis, f"{before}" if before == after else f"{before} -> {after}")
    table.add_row("parameters", f"{report.parameters_before:,} -> {report.parameters_after:,}", end_section=True)
    for name, value in (
        ("max |logit difference|, float64", report.max_logit_difference_float64),
        ("max |logit difference|, float32", report.max_logit_difference_float32),
        ("max |logit difference|, bfloat16", report.max_logit_difference_bfloat16),
        ("KL(old || new), nats", report.kl_divergence),
        ("top-1 agreement", report.top1_agreement),
    ):
        table.add_row(name, "not measured" if value is None else f"{value:.2e}" if value != 1.0 else "100 %")
    for note in report.notes:
        table.add_row("note", note)
    table.add_row("seconds", f"{report.seconds:.1f}")
    return table


def front_table(front: Front, matrix: LossMatrix) -> Table:
    """Forgetting and gain at some weights between the models before and after a stage."""
    table = Table(title=f"between the models before and after {front.stage}", caption="nats per token")
    for heading in ("weight", "forgetting", "gain"):
        table.add_column(heading, justify="right")
    for point in tradeoffs(front, matrix):
        kept = "–" if point.forgetting is None else f"{point.forgetting:+.4f}"
        table.add_row(f"{point.weight:g}", kept, f"{point.gain:+.4f}")
    return table
