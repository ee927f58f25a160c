"""Held-out loss per domain. The package can be called: `lifelong.evaluate(model, cards)` is its function `evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lifelong.records import DomainLoss


def evaluate(
    model: str | Path,
    domains: str | Path | Sequence[str | Path],
    *,
    tokens: str | int = "100k",
    sequence_length: int = 256,
    objective: str = "clm",
    split: str = "valid",
) -> list[DomainLoss]:
    """Held-out loss of a checkpoint, or of the last stage of a run, on each of some domains.

    Args:
        model: checkpoint folder, hub id, or run folder.
        domains: names or paths of domain cards; a single one may be given alone.
        tokens: held-out tokens per domain: whole documents in order until there are so many.
        sequence_length: tokens of a window.
        objective: `clm` or `mlm`.
        split: `valid` or `test`.

    Returns:
        One loss per card, in the order of the cards.

    Raises:
        InputError: a card, a size or the checkpoint is wrong.
    """
    from lifelong.evaluate.cards import evaluate_cards

    cards = [domains] if isinstance(domains, str | Path) else domains
    return evaluate_cards(
        model, cards, tokens=tokens, sequence_length=sequence_length, objective=objective, split=split
    )


class _CallablePackage(ModuleType):
    # importing any submodule binds the name `evaluate` of lifelong to this package: that is what has to be callable
    __call__ = staticmethod(evaluate)


sys.modules[__name__].__class__ = _CallablePackage
