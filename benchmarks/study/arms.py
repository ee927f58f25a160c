"""What an arm and a part of the study are.

An arm is a recipe of this folder and some `key=value` changes. Seeds of the tuning are used nowhere else: settings are
chosen on them, and the figures of the main tables come from seeds that had no say in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"
TUNING_SEEDS = (100, 101)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Arm:
    """A recipe with changes. `budget` is its share of the part's FLOPs, one where arms are to be compared directly."""

    recipe: str
    changes: tuple[str, ...] = ()
    budget: float = 1.0
    keep: bool = False


@dataclass(frozen=True)
class Part:
    """Arms that are compared with each other, all at the FLOPs of the arm `reference` with `tokens` a stage.

    `tested`: domains that the base, the last model and the best merge of the run (chosen on validation text) are
    measured on in the end, on their test splits; the search for that merge costs more than a short run, and is left out
    without `merged`.
    `horizons`: the changes of every arm fix the tokens of all its stages, and losses are read after each of them.
    """

    arms: Mapping[str, Arm]
    seeds: tuple[int, ...] = SEEDS
    reference: Arm = field(default_factory=lambda: Arm("replay"))
    tokens: int = 160_000
    changes: tuple[str, ...] = ()
    tested: tuple[str, ...] = ()
    merged: bool = True
    horizons: bool = False
