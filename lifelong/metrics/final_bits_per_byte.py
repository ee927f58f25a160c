"""Final bits per byte: the one loss that compares across tokenizers."""

from __future__ import annotations

from lifelong.metrics._entries import mean, seen_columns
from lifelong.records import LossMatrix

TITLE = "Bits per byte"
DESCRIPTION = "mean bits per byte now over all domains trained on so far; compares across tokenizers"
UNIT = "bits/byte"
LOWER_IS_BETTER = True
GROUP = "learned"


def compute(matrix: LossMatrix) -> float | None:
    """Mean over seen domains of the bits per byte after the last stage."""
    if not matrix.stages or len(matrix.bits_per_byte) < len(matrix.stages):
        return None
    last = len(matrix.stages) - 1
    return mean(matrix.bits_per_byte[last][k] for k in seen_columns(matrix, last))
