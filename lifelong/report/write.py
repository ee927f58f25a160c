"""The report folder of a run: matrix.json, report.md, index.html and PNG figures."""

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
from lifelong.report.style import markdown_safe
from lifelong.report.uncertainty import metric_intervals
from lifelong.report.verdict import budget_rows, cells, check_expectations, decision, metric_rows, phase_costs, verdict


def write_report(history: RunHistory, out: Path) -> Path:
    """Write the whole report; gives the path of the page."""
    with atomic_files(out) as made:
        folder = ReportFolder(made)
        write_json(folder.matrix, matrix_json(history))
        write_text(folder.markdown, markdown(history))
        write_figures(history, made)
        write_text(folder.page, page(history))
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
    """Write the report of what is committed and return its figures."""
    history = read_history(out)
    write_report(history, RunFolder(out).report.path)
    cost = sum((ComputeLedger.from_json(record.cost).total for record in history.stages), Cost())
    return RunResult(str(out), history.matrix, compute_all(history.matrix), cost)
