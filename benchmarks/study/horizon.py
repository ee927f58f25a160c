"""Unknown horizon: when does growing pay, if nobody knows how long there will be text and machines?

Every arm is one run at a constant rate. It is read at several horizons, so that all pieces of a run end where the
training FLOPs of all arms are the same. What a piece may have in tokens follows from the size that it trains, growth
costs no FLOPs to speak of, and reading is measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from benchmarks.study.arms import Arm, Part
from lifelong.records import RunHistory

DOMAINS = ("wiki", "news", "reviews", "bio", "cs")
TOKENS = 6_000
"""Of every domain, whenever a run is read."""
HORIZONS = (0.3, 0.6, 0.9, 1.2, 1.8, 2.4)
"""TFLOP of training."""
SIZES = {
    "small": {"layers": 2, "hidden_size": 32, "intermediate_size": 88, "heads": 4},
    "mid": {"layers": 3, "hidden_size": 48, "intermediate_size": 120, "heads": 6},
    "large": {"layers": 5, "hidden_size": 64, "intermediate_size": 152, "heads": 8},
}
"""41,632, 104,400 and 261,312 parameters, of which 16k, 25k and 33k are the one table of input and output."""
FLOPS_A_TOKEN = {"small": 297_984, "mid": 734_976, "large": 1_809_408}
RATES = {"small": 6e-3, "mid": 4e-3, "large": 3e-3}
STEP = 8 * 128


def arm(
    sizes: Sequence[str], *changes: str, recipe: str = "horizon", ends: Sequence[float] = HORIZONS, how: str = ""
) -> Arm:
    """A run whose pieces have these sizes and end at these TFLOP; the last size stays. `how` it grows: YAML."""
    sizes = [*sizes, *[sizes[-1]] * (len(ends) - len(sizes))]
    first = [f"model.{axis}={value}" for axis, value in SIZES[sizes[0]].items()]
    first.append(f"train.learning_rate={RATES[sizes[0]]}")
    spans = [end - start for start, end in pairwise((0.0, *ends))]
    for index, (size, span) in enumerate(zip(sizes, spans, strict=True)):
        first.append(f"stages.{index}.tokens={round(span * 1e12 / FLOPS_A_TOKEN[size] / STEP) * STEP}")
        if RATES[size] != RATES[sizes[0]]:
            first.append(f"stages.{index}.train={{learning_rate: {RATES[size]}}}")
        if index and size != sizes[index - 1]:
            axes = ", ".join(f"{axis}: {value}" for axis, value in SIZES[size].items())
            first.append(f"stages.{index}.expand={{{axes}{how}}}")
    return Arm(recipe, (*first, *changes))


TWICE = ("small", "mid", "mid", "mid", "large")
"""At 24 and at 21 tokens a parameter."""
ONCE = ("small", "small", "large")

UNKNOWN_HORIZON = Part(
    {
        "small": arm(("small",)),
        "mid": arm(("mid",)),
        "large": arm(("large",)),
        "grow twice": arm(TWICE),
        "grow once": arm(ONCE),
        "grow to mid": arm(TWICE[:2]),
        "grow twice, ELLE's copies": arm(TWICE, how=", mode: elle"),
        "grow twice, clone": arm(TWICE, how=", strategy: clone"),
        "grow twice, pairs": arm(TWICE, how=", strategy: pairs"),
    },
    horizons=True,
)
"""Five corpora mixed. `grow twice` is `pad`, the kind of new entries that a recipe gets without asking."""

GROWTHS = (0.3, 1.2, 2.4)
MOMENTS = Part(
    {
        name: arm(("small", "mid", "large"), change, recipe="horizon-short", ends=GROWTHS)
        for name, change in (("mapped moments", "carry_optimizer=true"), ("fresh moments", "carry_optimizer=false"))
    },
    horizons=True,
)
"""Pieces from growth to growth, so that a fresh Adam comes with a growth and nowhere else."""

LONG_ENDS = (0.3, 1.2, 2.4, 4.8)
LONG = Part(
    {
        name: arm(sizes, recipe="horizon-long", ends=LONG_ENDS)
        for name, sizes in {"mid": ("mid",), "large": ("large",), "grow twice": ("small", "mid", "large")}.items()
    },
    horizons=True,
)
"""The three that are near each other at 2.4 TFLOP, twice as far."""

STREAM_ENDS = (0.48, 0.96, 1.44, 1.92, 2.4)
STREAM = Part(
    {
        name: arm(sizes, recipe="horizon-stream", ends=STREAM_ENDS)
        for name, sizes in {
            "small": ("small",),
            "mid": ("mid",),
            "large": ("large",),
            "grow twice": ("small", "mid", "mid", "large"),
        }.items()
    },
    horizons=True,
)
"""Domain after domain, three tenths of it replayed; nobody knows which domain is the last."""

TUNED = (0.3, 0.6, 0.9)
RATES_TRIED = Part(
    {
        f"{size} {rate}": arm(
            (size,), f"train.learning_rate={rate}", "evaluate.split=valid", recipe="horizon-short", ends=TUNED
        )
        for size, rates in {
            "small": ("3e-3", "6e-3"),
            "mid": ("3e-3", "6e-3"),
            "large": ("1.5e-3", "3e-3", "6e-3"),
        }.items()
        for rate in rates
    },
    seeds=(100,),
    horizons=True,
)
"""Learning rates, on a seed and a split that the tables above have not seen."""

HORIZON: dict[str, Part] = {
    "unknown-horizon": UNKNOWN_HORIZON,
    "horizon-long": LONG,
    "horizon-moments": MOMENTS,
    "horizon-stream": STREAM,
    "horizon-rates": RATES_TRIED,
}


def horizons(run: Path, history: RunHistory) -> dict[str, Any]:
    """After every piece: training FLOPs so far, and losses of the mean and of the raw weights, nats/token by domain."""
    from benchmarks.study.budget import training_flops
    from lifelong.evaluate import evaluate
    from lifelong.ledger.folder import RunFolder

    length, split = history.recipe["sequence_length"], history.recipe["evaluate"]["split"]

    def losses(model: Path) -> list[float]:
        found = evaluate(model, DOMAINS, tokens=TOKENS, sequence_length=length, split=split)
        return [loss.nats_per_token for loss in found]

    folders = RunFolder(run).stages
    return {
        "flops": list(accumulate(training_flops(stage.cost) for stage in history.stages)),
        "mean": [losses(folder.model) for folder in folders],
        "raw": [losses(folder.trunk) for folder in folders],
    }
