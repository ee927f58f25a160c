"""Shared by all figures: colours, axes, marks between stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lifelong.records import RunHistory
from lifelong.report.curves import stage_spans

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7D5FB0", "#6B6B6B")


NAMED_STAGES = 12
MARKED_STAGES = 200


MILLION = 1e6
ROOM = 92  # characters of a stage's name that fit over an axis of eight inches


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that belongs to no window system."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def mark_stages(axes: Axes, history: RunHistory, *, names: bool = True) -> None:
    """A line where each stage begins, with its name while there are few; none where they would be a grey area."""
    spans = stage_spans(history)
    if len(spans) > MARKED_STAGES:
        return
    starts, ground = [span.start / MILLION for span in spans], axes.get_xaxis_transform()
    axes.vlines(starts, 0, 1, transform=ground, color="0.85", linewidth=0.8, zorder=0)
    if names and len(spans) <= NAMED_STAGES:
        longest = max((span.end for span in spans), default=1.0)
        for span in spans:
            room = max(3, int(ROOM * (span.end - span.start) / longest) - 2 * span.grown)
            cut = span.domain if len(span.domain) <= room else f"{span.domain[: room - 1]}…"
            axes.annotate(
                plain(cut) + " ▲" * span.grown, (span.start / MILLION, 1.0), xycoords=("data", "axes fraction"), xytext=(2, -9),
                textcoords="offset points", fontsize=7, color="0.35", annotation_clip=False,
            )  # fmt: skip


def plain(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")
