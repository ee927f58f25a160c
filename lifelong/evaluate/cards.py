"""Held-out loss of any checkpoint on domain cards, outside a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lifelong.errors import InputError
from lifelong.evaluate.perplexity import evaluate_domain
from lifelong.ledger.ledger import model_of
from lifelong.lm.checkpoint import load_model
from lifelong.lm.objective import OBJECTIVES
from lifelong.records import DomainLoss
from lifelong.schema import parse_count
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.collator import Collator
from lifelong.stream.heldout import write_heldout
from lifelong.stream.tokenizers.load import load_tokenizer


def evaluate_cards(
    model: str | Path,
    cards: Sequence[str | Path],
    *,
    tokens: str | int,
    sequence_length: int,
    objective: str,
    split: str,
) -> list[DomainLoss]:
    """Held-out loss of a checkpoint, or of the last stage of a run, on domain cards.

    Raises:
        InputError: a card, a size or the checkpoint is wrong.
    """
    from tempfile import TemporaryDirectory

    count = parse_count(tokens)
    if (
        objective not in OBJECTIVES
        or split not in ("valid", "test")
        or not isinstance(count, int)
        or sequence_length < 8
    ):
        raise InputError(
            f"evaluate: --objective is clm or mlm ({objective!r}), --split valid or test ({split!r}), --tokens a "
            f"number like 100k ({tokens!r}), --sequence-length at least 8 ({sequence_length})"
        )
    source, _ = model_of(model)
    domains = [load_domain(card) for card in cards]
    loaded, tokenizer = load_model(source, objective), load_tokenizer(source)
    collator = Collator.for_tokenizer(tokenizer, OBJECTIVES[objective].name, sequence_length)
    losses = []
    with TemporaryDirectory() as folder:
        for domain in domains:
            own = load_tokenizer(source, domain.name)
            heldout = write_heldout(domain, split, own, count, Path(folder) / domain.name)
            losses.append(
                evaluate_domain(
                    loaded,
                    heldout,
                    objective=objective,
                    sequence_length=sequence_length,
                    pad_id=collator.pad_id,
                    mask_id=collator.mask_id,
                )
            )
    return losses
