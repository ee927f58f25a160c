"""Tokens trained on, over all stages and phases."""

from __future__ import annotations

from lifelong.records import ComputeLedger, RunHistory

TITLE = "Tokens"
DESCRIPTION = "tokens trained on in all phases, replayed ones included"
UNIT = "tokens"
LOWER_IS_BETTER = True
GROUP = "cost"


def compute_history(history: RunHistory) -> float | None:
    """Sum over the committed stages."""
    if not history.stages:
        return None
    return float(sum(ComputeLedger.from_json(stage.cost).total.tokens for stage in history.stages))
