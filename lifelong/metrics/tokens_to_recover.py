"""Tokens until an earlier domain is back from its worst point inside a stage."""

from __future__ import annotations

from lifelong.metrics._entries import mean
from lifelong.metrics._probe_curves import Curve, earlier_domain_curves
from lifelong.records import RunHistory

TITLE = "Tokens to recover"
DESCRIPTION = "tokens from the start of a stage until an earlier domain has made up half of its worst rise (mean)"
UNIT = "tokens"
LOWER_IS_BETTER = True
GROUP = "kept"


def compute_history(history: RunHistory) -> float | None:
    """Mean over the earlier domains that rose and came back; None where none did or nothing was probed.

    Recovered means: at a probe behind the worst one, the loss is at most half of the worst rise above the
    loss before the stage. Domains that never come back inside their stage are not counted here; the loss
    matrix shows them.
    """
    return mean(_tokens_to_half(start, curve) for _, start, curve in earlier_domain_curves(history))


def _tokens_to_half(start: float, curve: Curve) -> float | None:
    worst_tokens, worst = max(curve, key=lambda point: point[1])
    if worst <= start:
        return None
    level = start + (worst - start) / 2
    return next((float(tokens) for tokens, loss in curve if tokens > worst_tokens and loss <= level), None)
