"""Scores of fine-tuned copies on labelled tasks, as tables: right, wrong and no domain prompt side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from rich.table import Table

from lifelong.records import TaskScores
from lifelong.report.style import table

PROMPTS = ("none", "right", "wrong")
SCORES = (("macro F1", "macro_f1"), ("micro F1", "micro_f1"), ("accuracy", "accuracy"))


def mean_and_deviation(values: Sequence[float]) -> str:
    """Per cent: mean, and standard deviation over seeds where there are several."""
    if not values:
        return "–"
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return f"{100 * mean:.1f}"
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{100 * mean:.1f} ± {100 * deviation:.1f}"


def rows_of(scores: TaskScores) -> list[tuple[str, str, str, str]]:
    """Prompt, and mean and deviation of every score; prompts that were not measured are left out."""
    rows = []
    for prompt in PROMPTS:
        runs = [run for run in scores.runs if run.prompt == prompt]
        if runs:
            rows.append((prompt, *(mean_and_deviation([getattr(run, key) for run in runs]) for _, key in SCORES)))
    return rows  # type: ignore[return-value]


def tasks_table(tasks: Sequence[TaskScores]) -> Table:
    """Table of task scores for a terminal."""
    shown = Table(title="downstream, test split, per cent", caption=caption(tasks))
    for heading in ("task", "domain", "prompt", *(title for title, _ in SCORES)):
        shown.add_column(heading, justify="left" if heading in ("task", "domain", "prompt") else "right")
    for scores in tasks:
        for prompt, *values in rows_of(scores):
            shown.add_row(scores.task, scores.domain, prompt, *values)
    return shown


def tasks_section(tasks: Sequence[TaskScores]) -> str:
    """Section of task scores for the page; empty without a task."""
    if not tasks:
        return ""
    rows = [
        (s.stage, s.task, s.domain, s.num_classes, *row, _share(s), f"{s.settings.get('learning_rate', 0):g}")
        for s in tasks
        for row in rows_of(s)
    ]
    heads = (
        "stage",
        "task",
        "domain",
        "classes",
        "prompt",
        *(title for title, _ in SCORES),
        "training examples",
        "learning rate",
    )
    return f"<p class=soft>{escape(caption(tasks))}</p>" + table(heads, rows, left=(0, 1, 2, 4))


def caption(tasks: Sequence[TaskScores]) -> str:
    """Caption of the task scores."""
    seeds = max((len({run.seed for run in s.runs}) for s in tasks), default=0)
    text = (
        f"Copies of the model, fine-tuned with a classification head; per cent on the test split, mean ± standard "
        f"deviation over {seeds} seed{'s' * (seeds != 1)}."
    )
    if not any(run.prompt != "none" for s in tasks for run in s.runs):
        text += " No domain prompts were given: right and wrong ones were not measured."
    if any(used < available for s in tasks for used, available in s.examples.values()):
        text += " Not all examples of every split were used."
    return text


def _share(scores: TaskScores) -> str:
    used, available = scores.examples["train"]
    return f"{used:,}" if used == available else f"{used:,}/{available:,}"
