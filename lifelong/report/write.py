"""The report folder of a run: matrix.json, report.md, report.tex, index.html and figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lifelong.errors import CorruptionError
from lifelong.files import atomic_files, finite, read_json, write_json, write_text
from lifelong.ledger.folder import ReportFolder, RunFolder
from lifelong.ledger.history import read_history
from lifelong.metrics import compute_all, compute_run
from lifelong.records import ComputeLedger, Cost, LossMatrix, RunHistory, RunResult
from lifelong.report.chat import chat_table, chat_warning, named_scores
from lifelong.report.downstream import score_columns, score_table
from lifelong.report.figures import write_figures
from lifelong.report.generated import generated_lines
from lifelong.report.html import page
from lifelong.report.latex import latex_table
from lifelong.report.model_card import model_card
from lifelong.report.uncertainty import metric_intervals
from lifelong.report.verdict import (
    budget_rows,
    cells,
    check_expectations,
    decision,
    metric_rows,
    phase_costs,
    reading_note,
    verdict,
)
from lifelong.report.view import markdown_safe


def write_report(history: RunHistory, out: Path) -> Path:
    """Write the whole report; gives the path of the page."""
    with atomic_files(out) as made:
        folder = ReportFolder(made)
        figures = matrix_json(history)
        write_json(folder.matrix, figures)
        write_text(folder.markdown, markdown(history))
        write_text(made / "report.tex", latex(history))
        write_figures(history, made)
        write_text(folder.page, page(history, figures))
    return ReportFolder(out).page


def matrix_json(history: RunHistory) -> dict[str, Any]:
    """The matrix with its metrics and cost, as `matrix.json` holds them."""
    total = sum(phase_costs(history).values(), Cost())
    data = {
        **history.matrix.to_json(),
        "metrics": compute_run(history),
        "intervals": {name: [bounds.low, bounds.high] for name, bounds in metric_intervals(history).items()},
        "cost": asdict(total),
        "replay": [dict(record.replay) for record in history.stages],
        **({"downstream": scores} if (scores := score_columns(history)) else {}),
        **({"chat": {name: item.rates for name, item in named_scores(history)}} if history.chat else {}),
        "unfinished": list(history.unfinished),
        "ledger": history.head,
    }
    cleaned: dict[str, Any] = finite(data)
    return {**cleaned, "sha256": matrix_digest(cleaned)}


def matrix_digest(data: Mapping[str, Any]) -> str:
    """SHA-256 over everything in a `matrix.json` but its own digest."""
    rest = {key: value for key, value in data.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def altered_matrix(out: Path) -> str:
    """Fault of the `matrix.json` in a report folder; empty where it is as written, or absent."""
    path = ReportFolder(out).matrix
    if not path.is_file():
        return ""
    try:
        data = read_json(path)
    except CorruptionError as error:
        return str(error)
    if not isinstance(data, dict) or data.get("sha256") != matrix_digest(data):
        return f"{path}: its content differs from what was written; `lifelong report` makes it again from the ledger"
    return ""


def markdown(history: RunHistory) -> str:
    """The report as Markdown."""
    metrics = compute_run(history)
    lines = [
        f"# {markdown_safe(history.name)}",
        "",
        f"**{markdown_safe(decision(history))}**",
        "",
        markdown_safe(verdict(history)),
        "",
    ]
    if history.unfinished:
        lines += [f"Unfinished: {markdown_safe(', '.join(history.unfinished))} not committed yet.", ""]
    if warning := chat_warning(history):
        lines += [f"Warning: {warning}.", ""]
    lines += ["Held-out perplexity (rise over the domain's best so far, in nats):", "", *_matrix_lines(history.matrix)]
    if history.matrix.watched:
        lines += ["", "Watched, never trained on:", "", *_matrix_lines(history.matrix.watched_matrix)]
    if note := reading_note(history):
        lines += ["", markdown_safe(note)]
    lines += generated_lines(history)
    lines += ["", "| metric | value | unit |", "|---|---:|---|"]
    lines += [f"| {row.title} | {row.value} | {row.unit} |" for row in metric_rows(metrics)]
    for heads, rows in (score_table(history), chat_table(named_scores(history))):
        if not rows:
            continue
        lines += ["", "| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "| phase | tokens | FLOPs | of which teacher | seconds |", "|---|---:|---:|---:|---:|"]
    for phase, cost in phase_costs(history).items():
        lines.append(
            f"| {markdown_safe(phase)} | {cost.tokens} | {cost.flops:.3e} | {cost.teacher_flops:.3e} | {cost.seconds:.1f} |"
        )
    for item in check_expectations(history, metrics):
        lines += [
            "",
            f"Expected {markdown_safe(item.metric)} = {item.expected:g} ± {item.tolerance}: "
            f"{'–' if item.value is None else f'{item.value:.4g}'}, {item.deviation}, "
            f"{'met' if item.met else 'NOT met'}.",
        ]
    for used in budget_rows(history):
        rise = "–" if used.rise is None else f"{used.rise:+.1%}"
        lines += ["", f"Budget of {markdown_safe(used.domain)}: {used.allowed:.1%}; now {rise}, {used.state}."]
    return "\n".join(lines) + "\n"


def latex(history: RunHistory) -> str:
    """The matrix and the metrics as tables for a paper (booktabs)."""
    matrix = history.matrix
    rows = [
        [label, *(cell.text + (f" ({cell.rise:+.2f})" if cell.rise is not None else "") for cell in row)]
        for label, row in zip(("initial", *matrix.stages), cells(matrix), strict=True)
    ]
    intervals = metric_intervals(history)
    metrics = [
        [row.title, row.value, row.unit, f"{b.low:.3g} to {b.high:.3g}" if (b := intervals.get(row.name)) else "–"]
        for row in metric_rows(compute_run(history))
    ]
    return "\n".join([
        latex_table(["perplexity after", *matrix.domains], rows), latex_table(["metric", "value", "unit", "95 %"], metrics),
    ])  # fmt: skip


def _matrix_lines(matrix: LossMatrix) -> list[str]:
    lines = [
        "| after | " + " | ".join(map(markdown_safe, matrix.domains)) + " |",
        "|---|" + "---:|" * len(matrix.domains),
    ]
    for label, row in zip(("initial", *matrix.stages), cells(matrix), strict=True):
        shown = [f"{cell.text}" + (f" ({cell.rise:+.2f})" if cell.rise is not None else "") for cell in row]
        lines.append(f"| {markdown_safe(label)} | " + " | ".join(shown) + " |")
    return lines


def summarise(out: Path) -> RunResult:
    """Write the report of what is committed and the model cards that are missing; return the figures."""
    history, run = read_history(out), RunFolder(out)
    write_report(history, run.report.path)
    for index, record in enumerate(history.stages):
        if not (card := run.stage(record.name).card).exists():
            write_text(card, model_card(history, index))
    cost = sum((ComputeLedger.from_json(record.cost).total for record in history.stages), Cost())
    return RunResult(str(out), history.matrix, compute_all(history.matrix), cost)
