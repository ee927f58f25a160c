"""Inserted layers: copies of a neighbour that do nothing yet, and learn from the first step.

Exactly one factor of every product is zero. Pre-norm: the output projections. Norms behind the sublayers: their
gains; zero projections would make that norm divide by the root of its epsilon, and the first step throws the model
off. LayerNorm as the stream (BERT): an inserted block still normalises twice, which removes the epsilon of the norm
before it; `ChainGains` puts it back.

Source: LLaMA-Pro (arXiv 2401.02415) for zero output projections; its rule breaks models with post-norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lifelong.errors import ExpansionError

Placement = str | Sequence[int]
"""`interleaved`, `last`, or for every inserted layer the layer it follows."""
NEGLIGIBLE_EPSILON = 1e-12
"""Below this the epsilon of a LayerNorm moves logits by less than the tolerance, and the plain chain is kinder."""


@dataclass(frozen=True)
class Layer:
    """A layer of the grown model: the old one it comes from, whether it is inserted, and its place behind it.

    `following` is the number of layers inserted right behind the old layer it belongs to.
    """

    source: int
    inserted: bool
    place: int = 0
    following: int = 0


def place_layers(old: int, new: int, placement: Placement = "interleaved") -> tuple[Layer, ...]:
    """The layers of the grown model, each inserted one right behind the layer it copies.

    Args:
        old: layers before.
        new: layers after.
        placement: `interleaved` spreads insertions evenly, `last` stacks them on top, a list names for every inserted
            layer the old layer it follows.

    Raises:
        ExpansionError: a list of another length, or of layers that there are not.
    """
    extra = new - old
    if placement == "interleaved":
        counts = [(k + 1) * extra // old - k * extra // old for k in range(old)]
    elif placement == "last":
        counts = [0] * (old - 1) + [extra]
    elif isinstance(placement, str):
        raise ExpansionError(f"layer placement: {placement!r}; known: interleaved, last, or a list of layers")
    else:
        wrong = [layer for layer in placement if not 0 <= layer < old]
        if len(placement) != extra or wrong:
            raise ExpansionError(
                f"layer placement: {list(placement)} has to name {extra} layers between 0 and {old - 1}, one for every "
                "inserted layer"
            )
        counts = [list(placement).count(k) for k in range(old)]
    return _behind(counts)


def random_layers(old: int, new: int, generator: torch.Generator) -> tuple[Layer, ...]:
    """ELLE: randomly chosen layers, each copied right behind itself, as they are."""
    chosen = torch.randint(0, old, (new - old,), generator=generator)
    return _behind(torch.bincount(chosen, minlength=old).tolist())


def _behind(counts: Sequence[int]) -> tuple[Layer, ...]:
    return tuple(Layer(k, j > 0, j, count) for k, count in enumerate(counts) for j in range(count + 1))


@dataclass(frozen=True)
class ChainGains:
    """A chain of LayerNorms that equals the one it replaces.

    With epsilon e, gains c on all but the last and the stream in front scaled by t, a chain of n + 1 norms is
    (u - mean) / sqrt(A var + B), A = sum_j (e/c^2)^j for j <= n, t^2 = (e/c^2)^n / A; the last gain grows by sqrt(A).

    Attributes:
        stream: t, the factor on what stands in front of the first norm.
        inner: c, the gain of all norms but the last.
        last: sqrt(A), the factor on the gain of the last.
    """

    stream: float = 1.0
    inner: float = 1.0
    last: float = 1.0


def chain_gains(epsilon: float, inserted: int) -> ChainGains:
    """The gains behind an old block with `inserted` blocks behind it; two norms a block."""
    if inserted == 0 or epsilon <= NEGLIGIBLE_EPSILON:
        return ChainGains()
    # the cube root keeps both the gains and the stream's factor far from zero: gradients stay within two orders
    inner = epsilon ** (1 / 3)
    ratio = epsilon / inner**2
    total = sum(ratio**j for j in range(2 * inserted + 1))
    return ChainGains(math.sqrt(ratio ** (2 * inserted) / total), inner, math.sqrt(total))
