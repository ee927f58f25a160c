"""Settings that a recipe has to choose, each tried where nobody has old text.

The arms are those of `no-old-text` with one thing changed, at the same training FLOPs, so that its figures are the
other half of every table.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.study.arms import Arm
from benchmarks.study.regimes import AVERAGE, KI, NO_OLD_TEXT, REAL, arm

KI_TAU_1, SOFT_TAU_1 = "KI on the new text, alpha .5", "real stories .3, half soft"
KI_TAU_2, SOFT_TAU_2 = f"{KI_TAU_1}, tau 2", f"{SOFT_TAU_1}, tau 2"
SOFT_REPLAY = "inherit={teacher: previous, on: replay, alpha: 0.5, schedule: constant, temperature: 2.0}"
CARRIED = "carry_optimizer=true"


def rates(lr: str, *changes: str) -> Arm:
    """The plain arm with the learning rate planned over the stream."""
    return arm(*AVERAGE[:2], f"lr={{{lr}}}", *changes)


SETTINGS = replace(
    NO_OLD_TEXT,
    merged=False,
    arms={
        KI_TAU_2: arm(KI % 0.5, "inherit.temperature=2.0"),
        SOFT_TAU_2: arm(REAL, SOFT_REPLAY),
        "infinite, averaged": rates("policy: infinite, warmup: 5%, average: 20%"),
        "infinite, annealed": rates("policy: infinite, warmup: 5%, decay: 20%"),
        "plain, moments carried": arm(CARRIED),
        "infinite, averaged, moments carried": rates("policy: infinite, warmup: 5%, average: 20%", CARRIED),
        "last fifth decayed": rates("policy: wsd, warmup: 5%, decay: 20%"),
        "plain, averaged, half the rate": arm(*AVERAGE, "train.learning_rate=5e-4"),
    },
)
"""What stands beside the arms of `no-old-text`: temperature, learning rates, moments, averaging."""

TABLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "TEMPERATURE": ((KI_TAU_1, KI_TAU_2), (SOFT_TAU_1, SOFT_TAU_2)),
    "RATES": (("plain", "plain, averaged", "infinite, averaged", "infinite, annealed"),),
    "MOMENTS": (("plain", "plain, moments carried"), ("infinite, averaged", "infinite, averaged, moments carried")),
    "AVERAGING": (("plain", "plain, averaged, half the rate"), ("last fifth decayed", "plain, averaged")),
}
"""Tables of the page: groups of arms, the first of a group the one that the others are compared with."""
