"""Floating-point operations, over all stages and phases."""

from __future__ import annotations

import math

from lifelong.records import ComputeLedger, RunHistory

TITLE = "FLOPs"
DESCRIPTION = "floating-point operations of all phases, the teacher's passes included"
UNIT = "FLOP"
LOWER_IS_BETTER = True


def compute_history(history: RunHistory) -> float | None:
    """Sum over the committed stages."""
    if not history.stages:
        return None
    return math.fsum(ComputeLedger.from_json(stage.cost).total.flops for stage in history.stages)
