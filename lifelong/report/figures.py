"""PNG figures of a run for papers and slides; the page draws its own."""

from __future__ import annotations

from pathlib import Path

from lifelong.records import RunHistory


def write_figures(history: RunHistory, out: Path) -> None:
    """`domains.png`: held-out loss of every domain over the whole life; `training.png`: loss and alpha."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    ends = stage_ends(history)
    for column, name in enumerate(history.matrix.domains):
        values = [history.matrix.initial[column], *(row[column] for row in history.matrix.nats_per_token)]
        known = [(x, y) for x, y in zip([0, *ends], values, strict=True) if y is not None]
        axes.plot([x / 1e6 for x, _ in known], [y for _, y in known], marker="o", label=name)
    for end in ends:
        axes.axvline(end / 1e6, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlabel="tokens of training (millions)", ylabel="held-out loss (nats per token)", title=history.name)
    axes.legend(frameon=False)
    figure.savefig(out / "domains.png", dpi=150)

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    start = 0
    for record, points in zip(history.stages, history.train, strict=True):
        train = [point for point in points if point.phase == "train"]
        axes.plot([(start + p.tokens) / 1e6 for p in train], [p.ce or p.loss for p in train], label=record.name)
        start += record.tokens
    axes.set(xlabel="tokens of training (millions)", ylabel="cross-entropy (nats per token)", title="training")
    if history.stages:
        axes.legend(frameon=False)
    figure.savefig(out / "training.png", dpi=150)


def stage_ends(history: RunHistory) -> list[int]:
    """Tokens trained on when each stage ended."""
    ends, total = [], 0
    for record in history.stages:
        total += record.tokens
        ends.append(total)
    return ends
