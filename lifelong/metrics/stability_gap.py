"""Stability gap: the worst rise of an earlier domain inside a stage."""

from __future__ import annotations

from lifelong.metrics._probe_curves import earlier_domain_curves
from lifelong.records import RunHistory

TITLE = "Stability gap"
DESCRIPTION = "the worst rise of any earlier domain's loss during a stage, above its loss before that stage"
UNIT = "nats/token"
LOWER_IS_BETTER = True
GROUP = "kept"


def compute_history(history: RunHistory) -> float | None:
    """Largest `max over probes - loss before the stage`, at least 0; None without probes of earlier domains.

    Source: De Lange et al. 2023 (arXiv 2205.13452).
    """
    rises = [max(loss for _, loss in curve) - start for _, start, curve in earlier_domain_curves(history)]
    return max(0.0, *rises) if rises else None
