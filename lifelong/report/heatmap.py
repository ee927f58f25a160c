"""The loss matrix as a heat map: a table with figures while it fits a screen, a grid of coloured cells beyond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lifelong.records import LossMatrix, RunHistory
from lifelong.report.uncertainty import Interval
from lifelong.report.verdict import Cell as Entry
from lifelong.report.verdict import cells
from lifelong.report.view import SHOWN_ROWS, Cell, Table

FIGURE_COLUMNS = 12
FIGURE_ROWS = 40
FULL_COLOUR_NATS = 0.5
STRONGEST = 0.5
GRID_SIDE = 160  # of a larger matrix every n-th row and column is drawn; matrix.json holds all
CELL = 8
LABEL = 96


def heat_map(
    matrix: LossMatrix, intervals: Sequence[Sequence[Interval | None]] = (), name: str = "matrix"
) -> Table | dict[str, Any]:
    """Perplexities, coloured by the rise over the domain's best so far; intervals under the pointer."""
    return _with_figures(matrix, intervals, name) if fits_figures(matrix) else _grid(matrix)


def fits_figures(matrix: LossMatrix) -> bool:
    """Whether the matrix is small enough for a table with figures."""
    return len(matrix.domains) <= FIGURE_COLUMNS and len(matrix.stages) <= FIGURE_ROWS


def tint(rise: float | None) -> str:
    """CSS background of a cell."""
    if rise is None:
        return ""
    strength = min(abs(rise) / FULL_COLOUR_NATS, 1.0) * STRONGEST
    return f"rgba(var(--{'rise' if rise > 0 else 'fall'}),{strength:.2f})"


def _with_figures(matrix: LossMatrix, intervals: Sequence[Sequence[Interval | None]], name: str) -> Table:
    rows: list[list[str | Cell]] = []
    for index, (label, row) in enumerate(zip(("initial", *matrix.stages), cells(matrix), strict=True)):
        line: list[str | Cell] = [label]
        for column, entry in enumerate(row):
            bounds = intervals[index][column] if intervals else None
            small = "" if entry.nats is None else f"{entry.nats:.3f} nats"
            rise = () if entry.rise is None else (f"{entry.rise:+.3f}",)
            line.append(
                Cell(
                    entry.text, (small, *rise) if small else (), _title(matrix, label, column, entry, bounds),
                    entry.nats, tint(entry.rise), "own" if entry.trained else "",
                )
            )  # fmt: skip
        rows.append(line)
    return Table(("after", *matrix.domains), rows, name=name, total=len(rows), fold=FIGURE_ROWS + 1)


def _title(matrix: LossMatrix, label: str, column: int, cell: Entry, bounds: Interval | None = None) -> str:
    text = f"{matrix.domains[column]} after {label}: "
    if cell.nats is None:
        return text + "not evaluated"
    text += f"{cell.nats:.4f} nats per token"
    if bounds is not None:
        text += f" (95 % over documents: {bounds.low:.4f} to {bounds.high:.4f})"
    return text + (f", {cell.rise:+.4f} from its best" if cell.rise is not None else "")


def _grid(matrix: LossMatrix) -> dict[str, Any]:
    table, labels = cells(matrix), ("initial", *matrix.stages)
    rows, columns = thinned(len(labels)), thinned(len(matrix.domains))
    place = LABEL + CELL / 2 - 0.5
    left_out = ""
    if len(rows) < len(labels) or len(columns) < len(matrix.domains):
        left_out = f"{len(rows)} of {len(labels)} rows and {len(columns)} of {len(matrix.domains)} domains are drawn; "
    return {
        "width": LABEL + CELL * len(columns) + 36, "height": LABEL + CELL * len(rows),
        "cells": [
            {"x": LABEL + CELL * x, "y": LABEL + CELL * y, "fill": tint((cell := table[row][column]).rise) or "var(--band)",
             "title": _title(matrix, labels[row], column, cell)}
            for y, row in enumerate(rows) for x, column in enumerate(columns)
        ],
        "dots": [
            {"x": place + CELL * x, "y": place + CELL * y}
            for y, row in enumerate(rows) for x, column in enumerate(columns) if table[row][column].trained
        ],
        "row_labels": [
            {"x": LABEL - 5, "y": LABEL + CELL * y + CELL - 1.5, "text": _cut(labels[row])}
            for y, row in enumerate(rows) if not y % 2 or len(rows) <= 60
        ],
        "column_labels": [
            {"x": LABEL + CELL * x + CELL - 1, "y": LABEL - 5, "text": _cut(matrix.domains[column])}
            for x, column in enumerate(columns) if not x % 2 or len(columns) <= 60
        ],
        "note": f"{left_out}figures under the pointer, all of them in matrix.json",
    }  # fmt: skip


def thinned(count: int) -> list[int]:
    """Every n-th of `count` places, the last included, at most `GRID_SIDE` of them."""
    if count <= GRID_SIDE:
        return list(range(count))
    step = -(-count // GRID_SIDE)
    return sorted({*range(0, count, step), count - 1})[-GRID_SIDE:]


def _cut(text: str, room: int = 20) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def replay_map(history: RunHistory) -> tuple[Table | None, int]:
    """Share of every stage's tokens that was replayed from each earlier domain, and how many domains had no room."""
    if not any(record.replay for record in history.stages):
        return None, 0
    replayed = dict.fromkeys(name for record in history.stages for name, tokens in record.replay.items() if tokens)
    names = [name for name in history.matrix.domains if name in replayed]
    names += [name for name in replayed if name not in names]  # public text, and what a model wrote
    strongest = max((t / r.tokens for r in history.stages for t in r.replay.values() if r.tokens), default=1.0) or 1.0
    rows: list[list[str | Cell]] = []
    for record in history.stages[-SHOWN_ROWS:]:
        total = sum(record.replay.values())
        line: list[str | Cell] = [record.name, _share(total, record.tokens)]
        for name in names[:FIGURE_COLUMNS]:
            tokens = record.replay.get(name, 0)
            colour = f"rgba(var(--cost),{0.4 * tokens / max(record.tokens, 1) / strongest:.2f})"
            line.append(_share(tokens, record.tokens, colour) if tokens else "–")
        rows.append(line)
    heads = ("stage", "replayed", *names[:FIGURE_COLUMNS])
    table = Table(heads, rows, name="replay", what="stages", total=len(history.stages))
    return table, max(0, len(names) - FIGURE_COLUMNS)


def _share(tokens: int, total: int, colour: str = "") -> Cell:
    return Cell(f"{tokens:,}", (f"{tokens / total if total else 0.0:.1%}",), value=float(tokens), tint=colour)
