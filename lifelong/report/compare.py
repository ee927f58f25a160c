"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from lifelong.metrics import compute_run, metric_info
from lifelong.records import RunHistory
from lifelong.report.verdict import HEADLINE_METRICS


@dataclass(frozen=True)
class Comparison:
    """Metrics by run; `differences` says what keeps the runs from being compared at face value."""

    runs: tuple[str, ...]
    metrics: dict[str, tuple[float | None, ...]]
    differences: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def compare_runs(histories: Sequence[RunHistory]) -> Comparison:
    """Line up the metrics of several runs."""
    values = [compute_run(history) for history in histories]
    names = [*HEADLINE_METRICS, "total_tokens", "total_flops", "total_seconds"]
    differences = []
    for what, facts in (
        ("domains", [history.matrix.domains for history in histories]),
        (
            "tokenizers",
            [history.stages[-1].fingerprints.get("tokenizer") if history.stages else None for history in histories],
        ),
        ("committed stages", [len(history.stages) for history in histories]),
    ):
        if len(set(facts)) > 1:
            differences.append(f"the runs differ in their {what}: losses per token do not compare")
    metrics = {name: tuple(value.get(name) for value in values) for name in names}
    return Comparison(tuple(history.path for history in histories), metrics, tuple(differences))


def comparison_table(comparison: Comparison) -> Table:
    """One column a run; the best of each metric in bold."""
    table = Table(title="comparison", caption="\n".join(f"! {text}" for text in comparison.differences) or None)
    table.add_column("metric")
    for run in comparison.runs:
        table.add_column(run.rsplit("/", 1)[-1], justify="right", overflow="fold")
    for name, values in comparison.metrics.items():
        info = metric_info(name)
        known = [value for value in values if value is not None]
        best = (min if info.lower_is_better else max)(known) if known else None
        shown = ["–" if v is None else f"[bold]{v:.4g}[/bold]" if v == best else f"{v:.4g}" for v in values]
        table.add_row(f"{info.title} ({info.unit})" if info.unit else info.title, *shown)
    return table
