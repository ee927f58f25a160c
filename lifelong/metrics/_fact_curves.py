"""How facts that were put into a stage are learned and forgotten, from the probes that ask for them.

Log-probabilities are means over the facts, so that one curve is fitted and not a dozen noisy ones. The jump is
looked for right behind an injection; later rises are general learning and not the injection's.

Source: Chang et al. 2024 (arXiv 2406.11813): local acquisition maximum, effectivity, retainability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lifelong.plugins import remembered
from lifelong.records import FactPoint, RunHistory

JUMP_WINDOW = 0.1  # of the stage, behind an injection
FEWEST_POINTS = 3  # of a fit, and of probes behind an injection where a stage is so short that its window holds fewer

Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class FactLife:
    """Mean log-probability over tokens of the whole run, with the places of the injections on the same axis.

    `jumps` are (tokens of the injection, before, highest behind it). `retained` is the share of the last peak's gain
    that is left, over tokens since that peak.
    """

    curve: Curve
    injected_at: list[float]
    jumps: list[tuple[float, float, float]]
    retained: Curve


@dataclass(frozen=True)
class PowerLaw:
    """`share = scale * tokens ** -decay`, with the R squared of the straight line in logarithms."""

    scale: float
    decay: float
    r_squared: float
    num_points: int

    def at(self, tokens: float) -> float:
        """The fitted share."""
        return self.scale * math.exp(-self.decay * math.log(tokens))


@remembered
def fact_life(history: RunHistory) -> FactLife | None:
    """The mean curve of a run's facts; None without facts or before they were put in."""
    facts = history.facts
    if facts is None or not facts.injected_at or facts.stage >= len(history.stages):
        return None
    curve: Curve = []
    start = 0.0
    for stage, record in enumerate(history.stages):
        trained_from = start + int(record.cost.get("recover", {}).get("tokens", 0))
        points = facts.points[stage] if stage < len(facts.points) else ()
        curve += [(trained_from + tokens, value) for tokens, value in _means(points)]
        if stage == facts.stage:
            injected = [trained_from + tokens for tokens in facts.injected_at]
            window, end = JUMP_WINDOW * record.tokens, start + record.tokens
        start += record.tokens
    jumps = []
    for at, following in zip(injected, [*injected[1:], end], strict=True):
        before = [value for tokens, value in curve if tokens <= at]
        behind = _behind(curve, at, window, following)
        if before and behind:
            jumps.append((at, before[-1], max(value for _, value in behind)))
    return FactLife(curve, injected, jumps, _retained(curve, jumps, _behind(curve, injected[-1], window, end)))


def _behind(curve: Curve, at: float, window: float, end: float) -> Curve:
    """The probes in which the jump of an injection is looked for."""
    points = [(tokens, value) for tokens, value in curve if at < tokens <= end]
    return [point for i, point in enumerate(points) if i < FEWEST_POINTS or point[0] <= at + window]


def _means(points: tuple[FactPoint, ...]) -> Curve:
    by_tokens: dict[int, list[float]] = {}
    for point in points:
        by_tokens.setdefault(point.tokens, []).append(point.log_probability)
    return [(float(tokens), math.fsum(values) / len(values)) for tokens, values in sorted(by_tokens.items())]


def _retained(curve: Curve, jumps: list[tuple[float, float, float]], behind: Curve) -> Curve:
    """Retained part of the gain from before the first injection to the peak behind the last one."""
    if not jumps or not behind:
        return []
    peak_at, peak = max(behind, key=lambda point: point[1])
    ground = jumps[0][1]
    if peak <= ground:
        return []
    return [(tokens - peak_at, (value - ground) / (peak - ground)) for tokens, value in curve if tokens > peak_at]


def power_law(retained: Curve) -> PowerLaw | None:
    """Least squares in logarithms over the points where something is left; None for fewer than three."""
    known = [(math.log(tokens), math.log(share)) for tokens, share in retained if tokens > 0 and share > 0]
    if len(known) < FEWEST_POINTS:
        return None
    count = len(known)
    mean_x, mean_y = (math.fsum(values) / count for values in zip(*known, strict=True))
    spread = math.fsum((x - mean_x) ** 2 for x, _ in known)
    if spread == 0:
        return None
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in known) / spread
    total = math.fsum((y - mean_y) ** 2 for _, y in known)
    left = math.fsum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in known)
    return PowerLaw(math.exp(mean_y - slope * mean_x), -slope, 1 - left / total if total else 1.0, count)
