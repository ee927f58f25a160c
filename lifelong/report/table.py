"""Tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lifelong.metrics import compute_run
from lifelong.records import DomainLoss, ExpansionReport, RunHistory
from lifelong.report.verdict import cells, check_expectations, metric_rows, phase_costs, verdict

NOTICEABLE_NATS = 0.02


def run_tables(history: RunHistory) -> list[RenderableType]:
    """Matrix, metrics, cost and verdict of a run."""
    metrics = compute_run(history)
    parts: list[RenderableType] = [matrix_table(history), metrics_table(metrics), cost_table(history)]
    expectations = check_expectations(history, metrics)
    for item in expectations:
        mark = "met" if item.met else "NOT met"
        parts.append(f"expected {item.metric} = {item.expected:g} ± {item.tolerance}: {item.value!r}, {mark}")
    parts.append(Text(verdict(history)))
    if history.unfinished:
        parts.append(Text(f"unfinished: {', '.join(history.unfinished)} not committed yet", style="yellow"))
    return parts


def matrix_table(history: RunHistory) -> Table:
    """Held-out perplexity after every stage; red: above the domain's best, green: at or below it."""
    table = Table(title=f"{history.name}: held-out perplexity", caption="(rise over the domain's best so far, in nats)")
    table.add_column("after")
    for name in history.matrix.domains:
        table.add_column(name, justify="right", overflow="fold")
    for label, row in zip(("initial", *history.matrix.stages), cells(history.matrix), strict=True):
        line = []
        for cell in row:
            text = Text(cell.text, style="bold" if cell.trained else "")
            if cell.rise is not None:
                style = "red" if cell.rise > NOTICEABLE_NATS else "green"
                text.append(f" ({cell.rise:+.2f})", style=style)
            line.append(text)
        table.add_row(label, *line)
    return table


def metrics_table(metrics: dict[str, float | None]) -> Table:
    """Metrics of the run."""
    table = Table(title="metrics")
    for heading in ("metric", "value", "unit"):
        table.add_column(heading, justify="right" if heading == "value" else "left")
    for title, value, unit, _ in metric_rows(metrics):
        table.add_row(title, value, unit)
    return table


def cost_table(history: RunHistory) -> Table:
    """Cost by phase over the whole run."""
    table = Table(title="cost")
    for heading in ("phase", "tokens", "PFLOPs", "of it teacher", "seconds"):
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


def losses_table(losses: Sequence[DomainLoss]) -> Table:
    """Held-out losses of one model."""
    table = Table(title="held-out loss")
    for heading in ("domain", "perplexity", "nats/token", "bits/byte", "tokens"):
        table.add_column(heading, justify="left" if heading == "domain" else "right")
    for loss in losses:
        table.add_row(
            loss.domain,
            f"{loss.perplexity:.4g}",
            f"{loss.nats_per_token:.4f}",
            f"{loss.bits_per_byte:.4f}",
            f"{loss.tokens:,}",
        )
    return table


def expansion_table(report: ExpansionReport) -> Table:
    """What a growth did and how far the function moved."""
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
