"""PNG and SVG figures of a run for papers and slides; the page draws its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.records import LossMatrix, RunHistory, TrainPoint
from lifelong.report.canvas import MARKED_STAGES, MILLION, OKABE_ITO, mark_stages, new_figure, plain
from lifelong.report.curves import Point, life_curves, stage_spans, thinned
from lifelong.report.facts import facts_figure
from lifelong.report.tradeoff import front_figure
from lifelong.report.verdict import cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHES = ("-", "--", ":")
LEGEND_LINES = len(OKABE_ITO) * len(DASHES)
TICK_LABELS = 26
WRITTEN_ENTRIES = 12
LINE_POINTS = 1_200  # of a longer life every n-th point is drawn
PNG_DPI = 150
GAP = TrainPoint("train", 0, 0, math.nan, alpha=math.nan)


def write_figures(history: RunHistory, out: Path) -> None:
    """`domains`: every domain over the whole life; `training`: loss and alpha; `matrix`: rises as a heat map."""
    figures = {
        "domains": domains_figure(history),
        "training": training_figure(history),
        "matrix": matrix_figure(history),
        "front": front_figure(history),
        "facts": facts_figure(history),
    }
    for name, figure in figures.items():
        if figure is not None:
            save_figure(figure, out / name)


def _short(name: str, room: int = 24) -> str:
    return name if len(name) <= room else f"{name[: room - 1]}…"


def _write_entries(axes: Axes, matrix: LossMatrix, limit: float) -> None:
    """Perplexity and rise in every cell of a matrix that is small enough to be read."""
    if max(len(matrix.domains), len(matrix.stages)) > WRITTEN_ENTRIES:
        return
    for stage, row in enumerate(cells(matrix)[1:]):
        for column, cell in enumerate(row):
            rise = "" if cell.rise is None else f"\n{cell.rise:+.2f}"
            dark = cell.rise is not None and abs(cell.rise) > 0.6 * limit
            text = plain(f"{cell.text}{rise}")
            axes.text(column, stage, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure as PNG for slides and as SVG for print."""
    import matplotlib as mpl

    figure.set_dpi(PNG_DPI)
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    figure.set_layout_engine(None)  # with one, every file would be drawn twice
    with mpl.rc_context({"svg.hashsalt": "lifelong", "svg.fonttype": "none"}):
        figure.savefig(path.with_suffix(".png"), dpi=PNG_DPI)
        figure.savefig(path.with_suffix(".svg"), dpi=100, metadata={"Date": None})


def line_style(index: int) -> dict[str, Any]:
    """Colour and dash of a line, different for each of `LEGEND_LINES`."""
    return {"color": OKABE_ITO[index % len(OKABE_ITO)], "linestyle": DASHES[index // len(OKABE_ITO)]}


def columns(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Millions of tokens and losses of the points that can be drawn."""
    known = [(x / MILLION, y) for x, y in thinned(points, LINE_POINTS) if math.isfinite(y)]
    return [x for x, _ in known], [y for _, y in known]


def domains_figure(history: RunHistory) -> Figure:
    """Held-out loss of every domain over the whole run."""
    curves = life_curves(history)
    figure = new_figure(8, 4.4)
    axes = figure.subplots()
    if len(curves) <= LEGEND_LINES:
        for index, (name, curve) in enumerate(curves.items()):
            style = line_style(index)
            axes.plot(*columns(curve.points), label=plain(name), **style)
            if len(history.stages) <= MARKED_STAGES:
                axes.plot(*columns(curve.ends), "o", color=style["color"], markersize=3.5)
    else:
        from matplotlib.collections import LineCollection

        lines = [list(zip(*columns(curve.points), strict=True)) for curve in curves.values()]
        axes.add_collection(LineCollection(lines, array=list(range(len(lines))), cmap="turbo", linewidths=0.7))
        axes.autoscale()
    mark_stages(axes, history)
    axes.set(xlabel="tokens of training (millions)", ylabel="held-out loss (nats per token)")
    axes.set_title(plain(history.name), fontsize=10)
    if 0 < len(curves) <= LEGEND_LINES:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    elif curves:
        _colour_bar(figure, axes, list(curves))
    return figure


def _colour_bar(figure: Figure, axes: Axes, names: list[str]) -> None:
    """Lines too many for a legend are told apart by their order in the stream."""
    import matplotlib as mpl

    scale = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, len(names) - 1), "turbo")
    bar = figure.colorbar(scale, ax=axes, ticks=[0, len(names) - 1])
    bar.ax.set_yticklabels([plain(names[0]), plain(names[-1])])
    bar.set_label("domains in stream order")


def training_figure(history: RunHistory) -> Figure:
    """Cross-entropy of the training text, and the inheritance rate below it where there was one."""
    taught = any(point.alpha > 0 for points in history.train for point in points)
    figure = new_figure(8, 4.6 if taught else 3.4)
    panels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1)) if taught else [figure.subplots()]
    for parity in (0, 1):  # neighbouring stages differ in colour; one gap between two stages of a colour
        drawn = list(zip(stage_spans(history), history.train, strict=True))[parity::2]
        points = [
            ((span.trained_from + p.tokens) / MILLION, p.ce if p.ce is not None else p.loss, p.alpha)
            for span, part in drawn
            for p in (*(point for point in part if point.phase == "train"), GAP)
        ]
        panels[0].plot([x for x, _, _ in points], [y for _, y, _ in points], color=OKABE_ITO[parity])
        if taught:
            panels[1].plot([x for x, _, _ in points], [alpha for _, _, alpha in points], color=OKABE_ITO[3])
    for panel in panels:
        mark_stages(panel, history, names=panel is panels[0])
    panels[0].set(ylabel="cross-entropy\n(nats per token)")
    if taught:
        panels[1].set(ylabel="α", ylim=(0, None))
    panels[-1].set(xlabel="tokens of training (millions)")
    return figure


def matrix_figure(history: RunHistory) -> Figure | None:
    """Rise of every domain over its best so far, after every stage; None before the first."""
    if not history.stages:
        return None
    import matplotlib as mpl
    import numpy as np

    matrix = history.matrix
    rises = np.array(
        [[np.nan if cell.rise is None else cell.rise for cell in row] for row in cells(matrix)[1:]], dtype=float
    ).reshape(len(matrix.stages), len(matrix.domains))
    finite = np.abs(rises[np.isfinite(rises)])
    limit = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    side = max(4.2, min(8.0, 0.45 * max(len(matrix.domains), len(matrix.stages))))
    figure = new_figure(1.3 * side + 1.6, side)
    axes = figure.subplots()
    colours = mpl.colormaps["PuOr_r"].with_extremes(bad="#f2f2f2")
    image = axes.imshow(rises, cmap=colours, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    own = [(column, stage) for stage, column in enumerate(matrix.stage_domains)]
    shift = 0.33 if max(rises.shape) <= WRITTEN_ENTRIES else 0.0  # beside the figures
    axes.plot(
        [x - shift for x, _ in own],
        [y - shift for _, y in own],
        "o",
        color="0.2",
        markersize=4 if len(own) <= 30 else 1.5,
    )
    for axis, labels in ((axes.xaxis, matrix.domains), (axes.yaxis, matrix.stages)):
        step = -(-len(labels) // TICK_LABELS) if labels else 1
        places = list(range(0, len(labels), step))
        axis.set_ticks(places, [plain(_short(labels[i])) for i in places], fontsize=7)
    axes.tick_params(axis="x", rotation=60)
    _write_entries(axes, matrix, limit)
    axes.set_title("perplexity (●: the stage's own domain), and rise over the domain's best so far", fontsize=10)
    figure.colorbar(image, ax=axes, label="nats per token (orange: forgotten)")
    return figure
