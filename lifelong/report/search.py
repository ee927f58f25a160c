"""What was learned against what was forgotten by the models of a merge search: a table for a terminal, and a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from lifelong.lineage.search import MergeSearch

HEADS = ("", "weights", "learned", "forgotten", "mean loss")


def search_table(search: MergeSearch) -> Table:
    """The front, the newest model and the chosen one."""
    table = Table(
        title=f"weights of {', '.join(search.stages)}",
        caption=f"{len(search.points)} models measured on the {search.split} split, nats per token; the front: no other "
        "has learned more and forgotten less",
    )
    for heading in HEADS:
        table.add_column(heading, justify="right" if heading not in HEADS[:2] else "left")
    front, newest, best = search.front, search.newest, search.best
    shown = [*front, *(point for point in (newest, best) if point not in front)]
    for point in sorted(shown, key=lambda point: point.learned):
        names = ["chosen"] * (point is best) + ["newest"] * (point is newest)
        table.add_row(
            ", ".join(names), " ".join(f"{weight:g}" for weight in point.weights), f"{point.learned:+.4f}",
            f"{point.forgotten:.4f}", f"{point.mean:.4f}",
        )  # fmt: skip
    return table


def draw_search(search: MergeSearch, path: Path) -> None:
    """Every model as a point, the front as a line, the newest and the chosen one named."""
    from lifelong.report.canvas import OKABE_ITO, new_figure

    figure = new_figure(5.2, 4)
    axes = figure.subplots()
    front = search.front
    axes.plot([p.learned for p in search.points], [p.forgotten for p in search.points], "o", color="0.7")
    axes.plot([p.learned for p in front], [p.forgotten for p in front], "o-", color=OKABE_ITO[0], label="front")
    for point, name in ((search.newest, "newest"), (search.best, "chosen")):
        axes.annotate(name, (point.learned, point.forgotten), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(
        xlabel="learned: mean fall of the stream's domains (nats per token)",
        ylabel="forgotten: mean rise over the best (nats per token)",
    )
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
