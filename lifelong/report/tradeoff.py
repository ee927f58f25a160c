"""Forgetting against gain on the line between two models of a stage: figures, a chart for the page, a PNG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lifelong.records import Front, LossMatrix, RunHistory
from lifelong.report.charts import LEFT, WIDTH, Axis, Chart, bounds
from lifelong.report.view import Table, table

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


class FrontView(NamedTuple):
    """A front as the page shows it."""

    stage: str
    chart: Chart | None
    table: Table | None


def front_views(history: RunHistory) -> list[FrontView]:
    """A chart and a table of every front that was measured."""
    found = []
    for front in history.fronts:
        points = tradeoffs(front, history.matrix)
        rows = [
            (f"{p.weight:g}", "–" if p.forgetting is None else f"{p.forgetting:+.4f}", f"{p.gain:+.4f}",
             *(f"{q.losses.get(name, float('nan')):.4f}" for name in history.matrix.domains[:12]))
            for p, q in zip(points, front.points, strict=True)
        ]  # fmt: skip
        heads = ("weight", "forgetting", "gain", *history.matrix.domains[:12])
        found.append(FrontView(front.stage, _chart(points), table(heads, rows, name=f"front-{front.stage}")))
    return found


def _chart(points: list[Tradeoff]) -> Chart | None:
    """The plane of gain and forgetting; 0 is on both axes, and each reaches as far as there are figures."""
    known = [(p.gain, p.forgetting, p.weight) for p in points if p.forgetting is not None]
    if len(known) < 2:
        return None
    chart = Chart(
        bounds([0.0, *(x for x, _, _ in known)]), [0.0, *(y for _, y, _ in known)], size=(WIDTH, HEIGHT),
        sides=(LEFT, RIGHT), x=Axis("gain on the stage's own domain (nats per token)"), y=Axis("forgetting (nats per token)"),
        caption="the numbers are weights", name="front",
    )  # fmt: skip
    chart.line([(gain, rise) for gain, rise, _ in known], ("var(--s0)", ""), width=2)
    chart.points([(gain, rise) for gain, rise, _ in known], "var(--s0)", radius=4)
    for index, (gain, rise, weight) in enumerate(known):
        rising = index + 1 < len(known) and known[index + 1][1] > rise
        anchor, aside = ("end", -7) if rising else ("start", 7)
        chart.text(chart.x(gain) + aside, chart.y(rise) - 7, f"{weight:g}", kind="name", anchor=anchor)
    return chart


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
