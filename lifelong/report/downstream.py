"""Scores of fine-tuned copies on labelled tasks, as tables: right, wrong and no domain prompt side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from lifelong.records import RunHistory, TaskScores
from lifelong.report.view import Table as View
from lifelong.report.view import table

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


def score_columns(history: RunHistory) -> dict[str, dict[str, str]]:
    """Model (`initial` or a stage) -> column -> score, for every model that was measured on a task or a harness task.

    A task is macro F1 of fine-tuned copies without a prompt; of the harness every metric is a column, with its
    standard error where the harness gives one.
    """
    rows: dict[str, dict[str, str]] = {name: {} for name in ("initial", *history.matrix.stages)}
    for scores in history.harness:
        for task, figures in scores.results.items():
            limit = scores.limits.get(task)
            suffix = "" if limit is None else f", first {limit}"
            for metric, value in figures.items():
                if _is_score(metric):
                    error = figures.get(_error_of(metric))
                    shown = f"{value:.4g}" + ("" if error is None or math.isnan(error) else f" ± {error:.2g}")
                    rows[scores.stage][f"{task} {metric}{suffix}"] = shown
    for item in history.tasks:
        plain = [run.macro_f1 for run in item.runs if run.prompt == "none"]
        rows[item.stage][f"{item.task} macro F1, %"] = mean_and_deviation(plain)
    return {name: row for name, row in rows.items() if row}


def _is_score(metric: str) -> bool:
    return "_stderr" not in metric and metric != "sample_len"


def _error_of(metric: str) -> str:
    name, comma, rest = metric.partition(",")
    return f"{name}_stderr{comma}{rest}"


def score_table(history: RunHistory) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of `score_columns`; a dash where a model was not measured."""
    rows = score_columns(history)
    heads = list(dict.fromkeys(column for row in rows.values() for column in row))
    return ["model", *heads], [[name, *(row.get(column, "–") for column in heads)] for name, row in rows.items()]


def tasks_details(tasks: Sequence[TaskScores]) -> View | None:
    """Table of the task scores for the page; None without a task."""
    rows = [
        (s.stage, s.task, s.domain, s.num_classes, *row, _share(s), f"{s.settings.get('learning_rate', 0):g}")
        for s in tasks
        for row in rows_of(s)
    ]
    scores = (title for title, _ in SCORES)
    heads = ("stage", "task", "domain", "classes", "prompt", *scores, "training examples", "learning rate")
    return table(heads, rows, left=(0, 1, 2, 4), name="tasks")


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
