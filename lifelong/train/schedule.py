"""The learning rate over a whole stream: what each stage starts from, and what it leaves for the next.

| policy | a stage |
|---|---|
| rewarm | warms up, and decays along a cosine to the floor |
| continue | is a part of one cosine over the tokens of all stages; only the first warms up |
| wsd | warms up, stays, and decays in a straight line over its last part |
| infinite | stays; only the first warms up and cools down; its end is annealed, the next goes on from before that |
| autoregressive | is a cosine from a peak that falls from stage to stage |

Sources: Ibrahim et al. 2024 (arXiv 2403.08763), sections 3 and 7: rewarm and infinite; Hu et al. 2024, MiniCPM (arXiv
2404.06395): wsd; Roth et al. 2024 (arXiv 2408.14471), autoregressive meta-schedule, used by TiC-LM (arXiv 2504.02107).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Policy = Literal["rewarm", "continue", "wsd", "infinite", "autoregressive"]


@dataclass(frozen=True)
class LrPolicy:
    """How the learning rate goes; shares are of one stage, levels of the peak.

    Attributes:
        policy: see above.
        warmup: share in which it rises.
        decay: share in which wsd and infinite fall to the floor.
        floor: level at the end.
        constant: level at which infinite stays, after a cosine over `cooldown` of the first stage.
        cooldown: see `constant`.
    """

    policy: Policy = "rewarm"
    warmup: float = 0.05
    decay: float = 0.2
    floor: float = 0.0
    constant: float = 1.0
    cooldown: float = 0.0


@dataclass(frozen=True)
class StageSpan:
    """Where a stage lies in its stream, in tokens."""

    before: int
    own: int
    total: int


def level(policy: LrPolicy, span: StageSpan, progress: float) -> float:
    """Learning rate over the peak when `progress` in [0, 1] of a stage is done."""
    first = span.before == 0
    warms = policy.policy not in ("continue", "infinite") or first
    rise = min(1.0, progress / policy.warmup) if warms and policy.warmup > 0 else 1.0
    return max(0.0, rise * _shape(policy, span, progress))  # the last fall may round to just below zero


def _shape(policy: LrPolicy, span: StageSpan, progress: float) -> float:
    kind, floor = policy.policy, policy.floor
    if kind == "continue":
        return _cosine(floor, (span.before + progress * span.own) / span.total)
    if kind in ("wsd", "infinite"):
        top = _constant(policy, span, progress) if kind == "infinite" else 1.0
        start = anneals_from(policy)
        return top if progress <= start else top + (floor - top) * (progress - start) / policy.decay
    after_warmup = max(0.0, progress - policy.warmup) / (1 - policy.warmup)
    return peak_of(policy, span) * _cosine(floor, after_warmup)


def _constant(policy: LrPolicy, span: StageSpan, progress: float) -> float:
    if span.before or policy.cooldown == 0:
        return policy.constant
    return _cosine(policy.constant, min(1.0, max(0.0, progress - policy.warmup) / policy.cooldown))


def peak_of(policy: LrPolicy, span: StageSpan) -> float:
    """Peak of a stage over the first: for autoregressive, where a cosine up to the end of this stage would be."""
    if policy.policy != "autoregressive":
        return 1.0
    return _cosine(policy.floor, span.before / (span.before + span.own))


def anneals_from(policy: LrPolicy) -> float:
    """Progress at which the last fall begins."""
    return 1.0 - policy.decay


def trunk_step(policy: LrPolicy, num_steps: int) -> int | None:
    """Steps after which the weights are kept for the next stage; None where it goes on from the end."""
    return max(1, round(anneals_from(policy) * num_steps)) if policy.policy == "infinite" else None


def _cosine(floor: float, progress: float) -> float:
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def curve(policy: LrPolicy, span: StageSpan, points: int) -> list[float]:
    """Levels at the middle of equal parts of a stage."""
    return [level(policy, span, (place + 0.5) / points) for place in range(points)]


def sparkline(values: list[float], largest: float) -> str:
    """A curve in one character a value."""
    bars = "▁▂▃▄▅▆▇█"
    top = max(largest, 1e-30)
    return "".join(bars[min(len(bars) - 1, int(len(bars) * max(0.0, value) / top))] for value in values)
