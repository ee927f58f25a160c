"""The report folder of a run: matrix.json, report.md, index.html and PNG figures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lifelong.checkpoint import write_json, write_text
from lifelong.metrics import compute_run
from lifelong.records import Cost, RunHistory
from lifelong.report.figures import write_figures
from lifelong.report.html import page
from lifelong.report.verdict import cells, check_expectations, metric_rows, phase_costs, verdict


def write_report(history: RunHistory, out: Path) -> Path:
    """Write the whole report; gives the path of the page."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "matrix.json", matrix_json(history))
    write_text(out / "report.md", markdown(history))
    write_figures(history, out)
    write_text(out / "index.html", page(history))
    return out / "index.html"


def matrix_json(history: RunHistory) -> dict[str, Any]:
    """The matrix with its metrics and cost, as `matrix.json` holds them."""
    total = sum(phase_costs(history).values(), Cost())
    return {**history.matrix.to_json(), "metrics": compute_run(history), "cost": asdict(total)}


def markdown(history: RunHistory) -> str:
    """The report as Markdown."""
    metrics = compute_run(history)
    lines = [f"# {history.name}", "", verdict(history), ""]
    if history.unfinished:
        lines += [f"Unfinished: {', '.join(history.unfinished)} not committed yet.", ""]
    lines += ["Held-out perplexity (rise over the domain's best so far, in nats):", ""]
    lines += ["| after | " + " | ".join(history.matrix.domains) + " |", "|---|" + "---:|" * len(history.matrix.domains)]
    for label, row in zip(("initial", *history.matrix.stages), cells(history.matrix), strict=True):
        shown = [f"{cell.text}" + (f" ({cell.rise:+.2f})" if cell.rise is not None else "") for cell in row]
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    lines += ["", "| metric | value | unit |", "|---|---:|---|"]
    lines += [f"| {title} | {value} | {unit} |" for title, value, unit, _ in metric_rows(metrics)]
    lines += ["", "| phase | tokens | FLOPs | of it teacher | seconds |", "|---|---:|---:|---:|---:|"]
    for phase, cost in phase_costs(history).items():
        lines.append(f"| {phase} | {cost.tokens} | {cost.flops:.3e} | {cost.teacher_flops:.3e} | {cost.seconds:.1f} |")
    for item in check_expectations(history, metrics):
        lines += [
            "",
            f"Expected {item.metric} = {item.expected:g} ± {item.tolerance}: {item.value}, "
            f"{'met' if item.met else 'not met'}.",
        ]
    return "\n".join(lines) + "\n"
