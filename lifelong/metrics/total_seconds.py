"""Wall-clock seconds, over all stages and phases."""

from __future__ import annotations

import math

from lifelong.records import ComputeLedger, RunHistory

TITLE = "Seconds"
DESCRIPTION = "wall-clock seconds of all phases"
UNIT = "s"
LOWER_IS_BETTER = True
GROUP = "cost"


def compute_history(history: RunHistory) -> float | None:
    """Sum over the committed stages."""
    if not history.stages:
        return None
    return math.fsum(ComputeLedger.from_json(stage.cost).total.seconds for stage in history.stages)
