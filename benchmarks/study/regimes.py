"""Three regimes in which old or new text is missing, or nobody knows how long the stream will be.

Every arm of a part spends the same training FLOPs; what a model writes for its own memory, the targets of it and the
passes of a teacher are counted.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.study.arms import Arm, Part

SELF = "replay={memory_tokens: 0, share: %s, generate: {tokens: %s}}"
STORED = "inherit={teacher: memory, on: replay, alpha: 1.0, schedule: constant, temperature: 1.0}"
REAL = "replay={memory_tokens: 120k, share: 0.3, proxy: {tinystories: 60k}}"
MORE_REAL = "replay={memory_tokens: 400k, share: 0.3, proxy: {tinystories: 200k}}"
KI = "inherit={teacher: previous, on: all, alpha: %s, schedule: constant, temperature: 1.0}"
AVERAGE = ("train.lr_scheduler_type=null", "train.warmup_steps=null", "lr={policy: wsd, warmup: 5%, average: 20%}")


def arm(*changes: str) -> Arm:
    """stories260K through news, then bio."""
    return Arm("no-old-text", changes)


def self_generated(share: float, *changes: str, tokens: str = "25k") -> Arm:
    """Replay of what the previous model wrote before the stage."""
    return arm(SELF % (share, tokens), *changes)


NO_OLD_TEXT = Part(
    {
        "plain": arm(),
        "plain, averaged": arm(*AVERAGE),
        "KI on the new text, alpha .5": arm(KI % 0.5),
        "going back (SFA)": arm("methods=[{name: sfa}]"),
        "self-generated .3, tokens alone": self_generated(0.3),
        "self-generated .3": self_generated(0.3, STORED),
        "self-generated .5": self_generated(0.5, STORED),
        "self-generated .5, from every model": self_generated(0.5, STORED, "replay.generate.from=every"),
        "self-generated .3, grown, new entries alone": self_generated(
            0.3, STORED, "stages.0.expand={intermediate_size: 344, train: new}"
        ),
        "real stories .3 (nobody has them)": arm(REAL),
        "real stories .3, half soft": arm(
            REAL, "inherit={teacher: previous, on: replay, alpha: 0.5, schedule: constant, temperature: 1.0}"
        ),
    },
    reference=Arm("no-old-text"),
    tokens=100_000,
    tested=("tinystories", "news", "bio"),
)
"""What the base knew is to be kept without a line of its text."""

EPOCHS = (2, 4, 6, 8)
LITTLE, MORE = 30_000, 100_000


def little(epochs: int, real: str) -> dict[str, Arm]:
    """Arms that spend what reading the text so many times costs the plain one; where not said, weight decay is .1."""
    kinds = {
        "plain": (),
        "weight decay 1": ("train.weight_decay=1.0",),
        "weight decay 3": ("train.weight_decay=3.0",),
        "KI .3": (KI % 0.3,),
        "replay .3": (real,),
        "replay .3 and KI .3": (real, KI % 0.3),
    }
    return {
        f"{name}, {epochs} passes": Arm("little-text", changes, budget=epochs / EPOCHS[0])
        for name, changes in kinds.items()
    }


LITTLE_TEXT = Part(
    {name: one for epochs in EPOCHS for name, one in little(epochs, REAL).items()},
    reference=Arm("little-text"),
    tokens=EPOCHS[0] * LITTLE,
    tested=("tinystories", "news"),
)
"""Thirty thousand tokens of news, read two to eight times."""

MORE_TEXT = replace(
    LITTLE_TEXT,
    arms={name: one for epochs in (2, 4, 8) for name, one in little(epochs, MORE_REAL).items()},
    tokens=EPOCHS[0] * MORE,
    changes=("stages.0.domain=benchmarks/study/recipes/cards/news-200kb.yaml",),
)
"""Three times as much of the same news, and of the stories."""

REGIMES = {"no-old-text": NO_OLD_TEXT, "little-text": LITTLE_TEXT, "more-text": MORE_TEXT}
