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
    domains: str | Path | Sequence[str | Path] = (),
    *,
    stage: str | int | None = None,
    files: Sequence[str | Path] = (),
    tokens: str | int | None = None,
    sequence_length: int | None = None,
    objective: str | None = None,
    split: str | None = None,
) -> list[DomainLoss]:
    """Held-out loss of a checkpoint, or of a stage of a run, on each of some domains.

    What is not given is the run's own, so that the figures are those of its matrix; a checkpoint is measured on 100k
    tokens of the validation split in windows of 256, as a causal model.

    Args:
        model: checkpoint folder, hub id, or run folder.
        domains: names or paths of domain cards; a single one may be given alone. All of a run where absent.
        stage: of a run: name or number of a stage, or `initial`; the last where absent.
        files: text files without a card.
        tokens: held-out tokens per domain: whole documents in order until there are so many.
        sequence_length: tokens of a window.
        objective: `clm` or `mlm`.
        split: `valid` or `test`.

    Returns:
        One loss per domain, cards first, in their order.

    Raises:
        InputError: a card, a size or the checkpoint is wrong.
    """
    from lifelong.evaluate.cards import evaluate_cards

    cards = [domains] if isinstance(domains, str | Path) else domains
    return evaluate_cards(
        model, cards, stage=stage, files=files, tokens=tokens, sequence_length=sequence_length, objective=objective,
        split=split,
    )  # fmt: skip


class _CallablePackage(ModuleType):
    # importing any submodule binds the name `evaluate` of lifelong to this package: that is what has to be callable
    __call__ = staticmethod(evaluate)


sys.modules[__name__].__class__ = _CallablePackage
