"""Shares of several domains of one stage, as whole numbers: exact at any time, and readable at any place.

Rows repeat with the common denominator of the shares, so that whose row is number n needs a table of one period and
no state. In a period the domain whose next row is due first goes first (earliest deadline). Its row number k may come
once k rows are owed in part, and must come before row k + 1 is owed as a whole: such an order always exists, and no
domain is ever a whole row away from its share.

Source: Steiner and Yeomans 1993, "Level schedules for mixed-model, just-in-time processes"; Tijdeman 1980, "The
chairman assignment problem".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

FINEST = 10_000
LONGEST_PERIOD = 1_000_000


def exact_shares(others: Mapping[str, float]) -> tuple[Fraction, ...]:
    """The shares of a stage: what the others leave to its own domain, then theirs.

    Raises:
        ValueError: they leave nothing, or have no common denominator that a table could have.
    """
    named = {name: Fraction(share).limit_denominator(FINEST) for name, share in others.items()}
    for name, share in named.items():
        if not share:
            raise ValueError(f"together_with: {name} has the share {others[name]:g}, the smallest is {1 / FINEST:g}")
    if (total := sum(named.values())) >= 1:
        raise ValueError(
            f"together_with: the shares sum to {float(total):g}; the stage's own domain gets what they leave, so less "
            "than 1 in all"
        )
    if math.lcm(*(share.denominator for share in named.values())) > LONGEST_PERIOD:
        raise ValueError(
            "together_with: the shares have no common unit of a millionth or more; round them to four decimals"
        )
    return (1 - Fraction(total), *named.values())


def period(shares: tuple[Fraction, ...]) -> list[int]:
    """Whose row is which, over one period of shares that sum to 1."""
    length = math.lcm(*(share.denominator for share in shares))
    counts = [int(share * length) for share in shares]
    given, owners = [0] * len(counts), []
    for row in range(1, length + 1):
        released = [i for i, count in enumerate(counts) if given[i] * length < row * count]
        owner = min(released, key=lambda i: -(-(given[i] + 1) * length // counts[i]))
        given[owner] += 1
        owners.append(owner)
    return owners
