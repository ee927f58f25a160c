"""Self-generated memory: which model wrote what for a stage, and samples of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lifelong.records import RunHistory, StageRecord
from lifelong.report.view import Table, markdown_safe, table

HEADS = ("for", "written by", "model", "tokens", "documents", "temperature", "seed", "begun with", "targets")
SHOWN = 6


def writers(history: RunHistory) -> list[StageRecord]:
    """Stages for which a model wrote."""
    return [record for record in history.stages if record.generated]


def generated_rows(history: RunHistory) -> list[tuple[str, ...]]:
    """A row for every such stage."""
    rows: list[tuple[str, ...]] = []
    for record in writers(history):
        facts: dict[str, Any] = dict(record.generated or {})
        start, targets = facts.get("start"), facts.get("targets")
        rows.append((
            record.name, str(facts.get("written_by")), str(facts.get("model"))[:12], f"{facts.get('tokens', 0):,}",
            f"{facts.get('documents', 0):,}", f"{facts.get('temperature', 1):g}{_truncated(facts)}", str(facts.get("seed")),
            "the start token" if start is None else f"{facts.get('start_tokens')} tokens of {start}",
            "none" if not targets else f"{facts.get('blocks_with_targets_of_a_pass', 0)} of {facts.get('blocks')} blocks by a pass",
        ))  # fmt: skip
    return rows


def _truncated(facts: dict[str, Any]) -> str:
    return "".join(f", {key} {facts[key]}" for key in ("top_k", "top_p") if facts.get(key) is not None)


def generated_table(history: RunHistory) -> Table | None:
    """The table for the page; None where no model wrote."""
    return table(HEADS, generated_rows(history), left=(0, 1, 2, 7, 8), name="generated", what="stages")


def generated_samples(history: RunHistory) -> list[tuple[str, list[str]]]:
    """The newest stages for which a model wrote, with samples of it."""
    return [(record.name, list((record.generated or {}).get("samples", ()))) for record in writers(history)[-SHOWN:]]


def generated_lines(history: RunHistory) -> Sequence[str]:
    """The table as Markdown."""
    rows = generated_rows(history)
    if not rows:
        return ()
    head = ["", "Self-generated memory:", "", "| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    return [*head, *("| " + " | ".join(map(markdown_safe, row)) + " |" for row in rows)]
