"""Forgetting of injected facts, as the exponent of a power law."""

from __future__ import annotations

from lifelong.metrics._fact_curves import fact_life, power_law
from lifelong.records import RunHistory

TITLE = "Fact decay"
DESCRIPTION = "exponent a of the share of an injected gain that is left after t tokens, fitted as c * t^-a"
UNIT = ""
LOWER_IS_BETTER = True
GROUP = "kept"


def compute_history(history: RunHistory) -> float | None:
    """Least squares in logarithms; None where fewer than three probes after the peak found anything left.

    Source: Chang et al. 2024 (arXiv 2406.11813), decay constant of retainability.
    """
    life = fact_life(history)
    fit = power_law(life.retained) if life is not None else None
    return None if fit is None else fit.decay
