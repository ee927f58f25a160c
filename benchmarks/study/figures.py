"""The study's pictures: every seed a dot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong.report.canvas import new_figure

Rows = Sequence[Mapping[str, Any]]
ACCENT, QUIET = "#0072B2", "#8a8a8a"


def arms_figure(by_arm: Mapping[str, Rows], path: Path) -> None:
    """Loss after the stream and forgetting of every arm, a dot for every seed, best at the top."""
    figure = new_figure(8.5, 0.32 * len(by_arm) + 1.2)
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(by_arm)
    for axes, values, title in (
        (
            left,
            [[math.log(row["metrics"]["ap"]) for row in rows] for rows in by_arm.values()],
            "mean loss after the stream, nats/token",
        ),
        (right, [[row["metrics"]["forgetting"] for row in rows] for rows in by_arm.values()], "forgetting, nats/token"),
    ):
        for index, seeds in enumerate(values):
            colour = ACCENT if names[index].startswith("ours") else QUIET
            axes.plot(seeds, [index] * len(seeds), "o", ms=4, color=colour, alpha=0.8)
            axes.plot([sum(seeds) / len(seeds)], [index], "|", ms=12, mew=2, color=colour)
        axes.set_title(title, fontsize=9)
        axes.grid(axis="x", color="#e4e4e4")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False, labelsize=8)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    right.axvline(0, color="#444444", lw=0.8)
    figure.savefig(path.with_suffix(".png"), dpi=110)


def front_figure(points: Mapping[float, Rows], new_domain: str, path: Path) -> None:
    """Loss on the earlier domains against loss on the new one, along the line between the two models."""
    figure = new_figure(4.6, 3.6)
    axes = figure.subplots()
    seeds = sorted({row["seed"] for rows in points.values() for row in rows})
    for seed in seeds:
        line = [next(row for row in rows if row["seed"] == seed)["nats_per_token"] for rows in points.values()]
        old = [sum(v for k, v in losses.items() if k != new_domain) / (len(losses) - 1) for losses in line]
        axes.plot([losses[new_domain] for losses in line], old, "o-", ms=4, color=ACCENT, alpha=0.8)
        for weight, losses, value in zip(points, line, old, strict=True):
            if seed == seeds[0]:
                axes.annotate(
                    f"{weight:g}", (losses[new_domain], value), xytext=(4, 4), textcoords="offset points", fontsize=7
                )
    axes.set_xlabel(f"{new_domain} (new), nats/token", fontsize=8)
    axes.set_ylabel("earlier domains, nats/token", fontsize=8)
    axes.grid(color="#e4e4e4")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=110)


def plane_figure(points: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str, path: Path) -> None:
    """What is learned against what is lost, a dot for every seed, a shape and a colour an arm; best at lower left."""
    figure = new_figure(7.6, 4.2)
    axes = figure.subplots()
    shapes = "osD^v<>PX*h"
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8a8a8a", "#E69F00")
    for place, (name, found) in enumerate(points.items()):
        xs, ys = zip(*found, strict=True)
        axes.plot(
            xs,
            ys,
            shapes[place % len(shapes)],
            ms=5,
            color=colours[place % len(colours)],
            alpha=0.85,
            ls="",
            label=name,
        )
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)
    axes.grid(color="#e4e4e4")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path.with_suffix(".png"), dpi=110, bbox_inches="tight")


def growth_figure(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Mean rise of the earlier domains against tokens since a growth."""
    figure = new_figure(5.2, 3.4)
    axes = figure.subplots()
    for (name, curve), colour in zip(curves.items(), ("#D55E00", "#0072B2", "#009E73"), strict=False):
        axes.plot(list(curve), list(curve.values()), "o-", ms=3, label=name, color=colour)
    axes.set_xscale("symlog", linthresh=1000, linscale=0.4)
    axes.set_xticks([0, 1_000, 10_000, 100_000], ["0", "1k", "10k", "100k"])
    axes.set_xlabel("tokens since the growth", fontsize=8)
    axes.set_ylabel("rise on earlier domains, nats/token", fontsize=8)
    axes.grid(color="#e4e4e4")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    figure.savefig(path.with_suffix(".png"), dpi=110)


def horizon_figure(curves: Mapping[str, Mapping[int, Sequence[float]]], flops: Sequence[float], path: Path) -> None:
    """Differences to one arm against training TFLOP: the mean over seeds a line, every seed a dot."""
    figure = new_figure(7.6, 4.2)
    axes = figure.subplots()
    colours = ("#0072B2", "#D55E00", "#8a8a8a", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
    for (name, seeds), colour in zip(curves.items(), colours, strict=False):
        for values in seeds.values():
            axes.plot(flops, values, "o", ms=3, color=colour, alpha=0.6)
        means = [sum(values) / len(seeds) for values in zip(*seeds.values(), strict=True)]
        axes.plot(flops, means, "-", lw=1.4, color=colour, label=name)
    axes.axhline(0, color="#444444", lw=0.8)
    axes.set_xscale("log")
    axes.set_xticks(flops, [f"{value:.2g}" for value in flops])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("training TFLOP", fontsize=8)
    axes.set_ylabel("loss above mid, nats/token", fontsize=8)
    axes.grid(color="#e4e4e4")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path.with_suffix(".png"), dpi=110, bbox_inches="tight")
