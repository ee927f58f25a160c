"""Figures for readers: one unit for a whole column, and no more digits than mean something."""

from __future__ import annotations

import math
from collections.abc import Sequence

PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
TIMES = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))
FEW_MINUTES = 3.0
BINARY = 1024.0
KEEP = 3  # significant digits of the largest figure of a column


def short_count(tokens: float) -> str:
    """A token count for an axis: 400k, 1.2M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.4g}{unit}"
    return f"{tokens:g}"


def tick(value: float) -> str:
    """A value on an axis, short: 0.0015 is 1.5e-3."""
    if not 0 < abs(value) < 0.01:
        return f"{value:g}"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def rate(tokens_per_second: float) -> str:
    """Tokens per second: `38 tok/s`, `4.1k tok/s`."""
    if tokens_per_second < 1000:
        return f"{tokens_per_second:.0f} tok/s" if tokens_per_second >= 10 else f"{tokens_per_second:.1f} tok/s"
    return (
        f"{tokens_per_second / 1e3:.1f}k tok/s" if tokens_per_second < 1e6 else f"{tokens_per_second / 1e6:.2f}M tok/s"
    )


def column(values: Sequence[float | None], unit: str = "") -> tuple[list[str], str]:
    """Figures of one column in one unit with as many decimals each, and that unit.

    `unit` is FLOP, s, B (bytes) or anything else, which stays as it is.
    """
    known = [abs(value) for value in values if value is not None and math.isfinite(value)]
    size, name = _scale(max(known, default=0.0), unit)
    largest = max(known, default=0.0) / size
    decimals = max(0, KEEP - 1 - math.floor(math.log10(largest))) if largest > 0 else 0
    whole = not unit and all(value == int(value) for value in known)
    decimals = 0 if whole else min(decimals, 4)
    return ["–" if value is None else f"{value / size:,.{decimals}f}" for value in values], name


def _scale(largest: float, unit: str) -> tuple[float, str]:
    if unit == "s":
        return next(((size, name) for size, name in TIMES if largest >= FEW_MINUTES * size), (1.0, "s"))
    if unit == "B":
        power = min(4, int(math.log(largest, BINARY))) if largest >= BINARY else 0
        return BINARY**power, ("B", "KiB", "MiB", "GiB", "TiB")[power]
    if unit == "FLOP":
        return next(((size, f"{prefix}FLOP") for size, prefix in PREFIXES if largest >= size), (1.0, "FLOP"))
    return 1.0, unit


def quantity(value: float, unit: str) -> str:
    """One figure with its unit: `8.64 TFLOP`, `3.4 min`, `38 s`."""
    if unit == "s":
        size, name = _scale(value, unit)
        return f"{value / size:.1f} {name}" if value / size < 10 else f"{value / size:,.0f} {name}"
    (text,), name = column([value], unit)
    return f"{text} {name}".strip()
