"""Acquisition: what one injection of a fact does at once."""

from __future__ import annotations

from lifelong.metrics._entries import mean
from lifelong.metrics._fact_curves import fact_life
from lifelong.records import RunHistory

TITLE = "Fact jump"
DESCRIPTION = "rise of the log-probability of injected facts right after an injection (mean over facts and injections)"
UNIT = "nats"
LOWER_IS_BETTER = False
GROUP = "learned"


def compute_history(history: RunHistory) -> float | None:
    """Highest mean log-probability within a tenth of the stage behind an injection, minus the one before it.

    Source: Chang et al. 2024 (arXiv 2406.11813), effectivity.
    """
    life = fact_life(history)
    return None if life is None else mean(peak - before for _, before, peak in life.jumps)
