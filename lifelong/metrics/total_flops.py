"""Floating-point operations, over all stages and phases."""

from __future__ import annotations

from lifelong.metrics._entries import total_flops
from lifelong.records import RunHistory

TITLE = "FLOPs"
DESCRIPTION = "floating-point operations of all phases, the teacher's passes included"
UNIT = "FLOP"
LOWER_IS_BETTER = True
GROUP = "cost"


def compute_history(history: RunHistory) -> float | None:
    """Sum over the committed stages."""
    return total_flops(history)
