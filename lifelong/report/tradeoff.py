"""Forgetting against gain on the line between two models of a stage: figures, a chart for the page, a PNG."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from lifelong.records import Front, LossMatrix, RunHistory
from lifelong.report.charts import BOTTOM, LEFT, TOP, WIDTH, nice_ticks
from lifelong.report.style import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT, RIGHT = 320, 40


@dataclass(frozen=True)
class Tradeoff:
    """One weight, in nats per token.

    `forgetting`: mean rise of the domains learned before the stage, and of the watched ones, over their best until then;
    None where there are none. `gain`: fall of the loss on the stage's own domain.
    """

    weight: float
    forgetting: float | None
    gain: float


def tradeoffs(front: Front, matrix: LossMatrix) -> list[Tradeoff]:
    """The points of a front; gain is measured from weight 0 or, without it, from the row before the stage."""
    stage = matrix.stages.index(front.stage)
    own = matrix.stage_domains[stage]
    earlier = [matrix.domains[column] for column in sorted({c for c in matrix.stage_domains[:stage] if c != own})]
    known = {name: matrix.series(name)[1 : stage + 1] for name in earlier}
    known |= {name: matrix.series(name)[: stage + 1] for name in matrix.watched}
    best = {name: min(found) for name, row in known.items() if (found := [loss for loss in row if loss is not None])}
    rows = (matrix.initial, *matrix.nats_per_token)
    before = next((p.losses[front.domain] for p in front.points if p.weight == 0), rows[stage][own])
    points = []
    for point in front.points:
        rises = [point.losses[name] - least for name, least in best.items() if name in point.losses]
        mean = sum(rises) / len(rises) if rises else None
        points.append(Tradeoff(point.weight, mean, (before or 0.0) - point.losses[front.domain]))
    return points


def front_sections(history: RunHistory) -> str:
    """A chart and a table of every front that was measured; empty without one."""
    parts = []
    for front in history.fronts:
        points = tradeoffs(front, history.matrix)
        rows = [
            (f"{p.weight:g}", "–" if p.forgetting is None else f"{p.forgetting:+.4f}", f"{p.gain:+.4f}",
             *(f"{q.losses.get(name, float('nan')):.4f}" for name in history.matrix.domains[:12]))
            for p, q in zip(points, front.points, strict=True)
        ]  # fmt: skip
        heads = ("weight", "forgetting", "gain", *history.matrix.domains[:12])
        parts.append(f"<h3>{escape(front.stage)}</h3>" + _chart(points) + table(heads, rows))
    if not parts:
        return ""
    return (
        "<p class=soft>The previous stage's model, grown to the new size (weight 0), and the trained one (weight 1), with models "
        "on the straight line between their weights. To the right: more gained on the stage's domain; up: more forgotten "
        "of the earlier ones. <code>lifelong merge RUN --weight A --out DIR</code> writes one of them.</p>"
        + "".join(parts)
    )


def _chart(points: list[Tradeoff]) -> str:
    known = [(p.gain, p.forgetting, p.weight) for p in points if p.forgetting is not None]
    if len(known) < 2:
        return ""
    x_low, x_high = min(0.0, *(x for x, _, _ in known)), max(0.0, *(x for x, _, _ in known)) or 1.0
    y_low, y_high = min(0.0, *(y for _, y, _ in known)), max(0.0, *(y for _, y, _ in known)) or 1.0
    x_room, y_room = 0.06 * (x_high - x_low), 0.12 * (y_high - y_low)
    x_low, x_high, y_low, y_high = x_low - x_room, x_high + x_room, y_low - y_room, y_high + y_room

    def x(gain: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (gain - x_low) / (x_high - x_low)

    def y(forgetting: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (y_high - forgetting) / (y_high - y_low)

    parts = [
        f"<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1={y(v):.1f} y2={y(v):.1f} />"
        f"<text x={LEFT - 8} y={y(v) + 4:.1f} text-anchor=end>{v:g}</text>"
        for v in nice_ticks(y_low, y_high)
    ]
    parts += [f"<text x={x(v):.1f} y={HEIGHT - 14} text-anchor=middle>{v:g}</text>" for v in nice_ticks(x_low, x_high)]
    path = " ".join(f"{x(gain):.1f},{y(forgetting):.1f}" for gain, forgetting, _ in known)
    parts.append(f'<polyline points="{path}" fill=none style="stroke:var(--s0)" stroke-width=2 />')
    for index, (gain, forgetting, weight) in enumerate(known):
        rising = index + 1 < len(known) and known[index + 1][1] > forgetting
        anchor, aside = ("end", -7) if rising else ("start", 7)
        parts.append(f'<circle cx={x(gain):.1f} cy={y(forgetting):.1f} r=4 style="fill:var(--s0)" />')
        place = f"x={x(gain) + aside:.1f} y={y(forgetting) - 7:.1f} text-anchor={anchor}"
        parts.append(f"<text class=name {place}>{weight:g}</text>")
    return (
        f'<div class=scroll><svg class=chart viewBox="0 0 {WIDTH} {HEIGHT}" role=img aria-label="forgetting against gain">'
        f"{''.join(parts)}</svg><div class=legend><span class=soft>right: gain on the stage's own domain; up: forgetting of "
        "the earlier domains; both in nats per token; the numbers are weights</span></div></div>"
    )


def front_figure(history: RunHistory) -> Figure | None:
    """Every front as a line, for papers; None without one that has earlier domains."""
    from lifelong.report.canvas import OKABE_ITO, new_figure, plain

    figure = new_figure(5.2, 4)
    axes = figure.subplots()
    drawn = 0
    for front in history.fronts:
        known = [(p.gain, p.forgetting, p.weight) for p in tradeoffs(front, history.matrix) if p.forgetting is not None]
        if len(known) < 2:
            continue
        colour = OKABE_ITO[drawn % len(OKABE_ITO)]
        gains, rises = [gain for gain, _, _ in known], [rise for _, rise, _ in known]
        axes.plot(gains, rises, "o-", color=colour, label=plain(front.stage))
        for gain, rise, weight in known:
            axes.annotate(f"{weight:g}", (gain, rise), xytext=(5, 5), textcoords="offset points", fontsize=8)
        drawn += 1
    if not drawn:
        return None
    axes.set(
        xlabel="gain on the stage's own domain (nats per token)",
        ylabel="forgetting of earlier domains (nats per token)",
    )
    axes.legend(frameon=False)
    return figure
