"""The loss matrix as a heat map: a table with figures while it fits a screen, a grid of coloured cells beyond."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from lifelong.records import LossMatrix, RunHistory
from lifelong.report.style import folded, newest
from lifelong.report.uncertainty import Interval
from lifelong.report.verdict import Cell, cells

FIGURE_COLUMNS = 12
FIGURE_ROWS = 40
FULL_COLOUR_NATS = 0.5
STRONGEST = 0.65
GRID_SIDE = 160  # of a larger matrix every n-th row and column is drawn; matrix.json holds all
CELL = 8
LABEL = 96


def heat_map(matrix: LossMatrix, intervals: Sequence[Sequence[Interval | None]] = ()) -> str:
    """Perplexities, coloured by the rise over the domain's best so far; intervals under the pointer."""
    if fits_figures(matrix):
        return _with_figures(matrix, intervals)
    return _grid(matrix)


def fits_figures(matrix: LossMatrix) -> bool:
    """Whether the matrix is small enough for a table with figures."""
    return len(matrix.domains) <= FIGURE_COLUMNS and len(matrix.stages) <= FIGURE_ROWS


def tint(rise: float | None) -> str:
    """CSS background of a cell."""
    if rise is None:
        return ""
    strength = min(abs(rise) / FULL_COLOUR_NATS, 1.0) * STRONGEST
    return f"rgba(var(--{'rise' if rise > 0 else 'fall'}),{strength:.2f})"


def _with_figures(matrix: LossMatrix, intervals: Sequence[Sequence[Interval | None]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in matrix.domains)
    lines = []
    for index, (label, row) in enumerate(zip(("initial", *matrix.stages), cells(matrix), strict=True)):
        line = f"<td>{escape(label)}</td>"
        for column, cell in enumerate(row):
            colour = tint(cell.rise)
            style = f' style="background:{colour}"' if colour else ""
            small = f"<small>{cell.rise:+.2f}</small>" if cell.rise is not None else ""
            bounds = intervals[index][column] if intervals else None
            own, title = " class=own" if cell.trained else "", escape(_title(matrix, label, column, cell, bounds))
            line += f'<td{own}{style} title="{title}">{escape(cell.text)}{small}</td>'
        lines.append(f"<tr>{line}</tr>")
    return f"<div class=scroll><table><tr><th>after</th>{head}</tr>{''.join(lines)}</table></div>"


def _title(matrix: LossMatrix, label: str, column: int, cell: Cell, bounds: Interval | None = None) -> str:
    text = f"{matrix.domains[column]} after {label}: "
    if cell.nats is None:
        return text + "not evaluated"
    text += f"{cell.nats:.4f} nats per token"
    if bounds is not None:
        text += f" (95 % over documents: {bounds.low:.4f} to {bounds.high:.4f})"
    return text + (f", {cell.rise:+.4f} from its best" if cell.rise is not None else "")


def _grid(matrix: LossMatrix) -> str:
    table, labels = cells(matrix), ("initial", *matrix.stages)
    rows, columns = thinned(len(labels)), thinned(len(matrix.domains))
    width, height = LABEL + CELL * len(columns), LABEL + CELL * len(rows)
    parts = []
    for y, row in enumerate(rows):
        if not y % 2 or len(rows) <= 60:
            parts.append(_row_label(labels[row], y))
        for x, column in enumerate(columns):
            cell = table[row][column]
            title = f"<title>{escape(_title(matrix, labels[row], column, cell))}</title>"
            fill = tint(cell.rise) or "var(--band)"
            place = f"x={LABEL + CELL * x} y={LABEL + CELL * y} width={CELL - 1} height={CELL - 1}"
            parts.append(f'<rect {place} style="fill:{fill}">{title}</rect>')
            if cell.trained:
                cx, cy = LABEL + CELL * x + CELL / 2 - 0.5, LABEL + CELL * y + CELL / 2 - 0.5
                parts.append(f'<circle cx={cx} cy={cy} r=2.2 style="fill:var(--ink)" />')
    for x, column in enumerate(columns):
        if not x % 2 or len(columns) <= 60:
            place = f"translate({LABEL + CELL * x + CELL - 1} {LABEL - 5}) rotate(-60)"
            parts.append(f'<text transform="{place}">{escape(_cut(matrix.domains[column]))}</text>')
    left_out = ""
    if len(rows) < len(labels) or len(columns) < len(matrix.domains):
        left_out = f"{len(rows)} of {len(labels)} rows and {len(columns)} of {len(matrix.domains)} domains are drawn; "
    svg = (
        f'<svg viewBox="0 0 {width + 36} {height}" role=img aria-label="loss matrix" '
        f'style="width:{width + 36}px;max-width:none;font-size:8.5px">{"".join(parts)}</svg>'
    )
    note = f"{left_out}figures under the pointer, all of them in matrix.json"
    return f"<div class=scroll style='max-height:85vh;overflow:auto'>{svg}</div><p class=soft><small>{note}</small></p>"


def _row_label(text: str, y: int) -> str:
    place = f"x={LABEL - 5} y={LABEL + CELL * y + CELL - 1.5}"
    return f"<text {place} text-anchor=end>{escape(_cut(text))}</text>"


def thinned(count: int) -> list[int]:
    """Every n-th of `count` places, the last included, at most `GRID_SIDE` of them."""
    if count <= GRID_SIDE:
        return list(range(count))
    step = -(-count // GRID_SIDE)
    return sorted({*range(0, count, step), count - 1})[-GRID_SIDE:]


def _cut(text: str, room: int = 20) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def replay_map(history: RunHistory) -> str:
    """Share of every stage's tokens that was replayed from each earlier domain; empty where nothing was."""
    if not any(record.replay for record in history.stages):
        return ""
    replayed = dict.fromkeys(name for record in history.stages for name, tokens in record.replay.items() if tokens)
    names = [name for name in history.matrix.domains if name in replayed]
    names += [name for name in replayed if name not in names]  # public text, and what a model wrote
    head = "".join(f"<th>{escape(name)}</th>" for name in names[:FIGURE_COLUMNS])
    lines = []
    strongest = max((t / r.tokens for r in history.stages for t in r.replay.values() if r.tokens), default=1.0) or 1.0
    shown, left_out = newest(list(history.stages))
    for record in shown:
        total = sum(record.replay.values())
        share = total / record.tokens if record.tokens else 0.0
        line = f"<td>{escape(record.name)}</td><td>{total:,}<small>{share:.1%}</small></td>"
        for name in names[:FIGURE_COLUMNS]:
            tokens = record.replay.get(name, 0)
            colour = f"rgba(var(--cost),{0.5 * tokens / max(record.tokens, 1) / strongest:.2f})"
            text = f"{tokens:,}<small>{tokens / record.tokens:.1%}</small>" if tokens else "–"
            line += f'<td style="background:{colour}">{text}</td>'
        lines.append(f"<tr>{line}</tr>")
    rest = len(names) - FIGURE_COLUMNS
    note = f"<p class=soft><small>{rest} further domains are in matrix.json (replay)</small></p>" if rest > 0 else ""
    table = f"<div class=scroll><table><tr><th>stage</th><th>replayed</th>{head}</tr>{''.join(lines)}</table></div>"
    return folded(table + left_out, len(history.stages), "stages") + note
