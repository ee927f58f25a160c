"""Held-out loss outside of training: of any checkpoint on domain cards, of a run as its matrix has it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lifelong.errors import InputError
from lifelong.evaluate.perplexity import evaluate_domain
from lifelong.evaluate.settings import autocast_dtype
from lifelong.evaluate.source import ModelSource, find_source
from lifelong.ledger.history import read_losses
from lifelong.ledger.ledger import read_records
from lifelong.lm.checkpoint import load_model, to_accelerator, weights_fingerprint
from lifelong.lm.objective import OBJECTIVES, objective_of, pad_id
from lifelong.records import DomainLoss
from lifelong.schema import parse_count
from lifelong.stream.cards.domain import Domain, load_domain
from lifelong.stream.heldout import Heldout, write_heldout
from lifelong.stream.tokenizers.load import load_tokenizer

TOKENS, SEQUENCE_LENGTH, OBJECTIVE, SPLIT, AUTO = 100_000, 256, "clm", "valid", "auto"


@dataclass(frozen=True)
class EvaluationSettings:
    """How text is read; what is not given is the run's own, or the usual for a checkpoint."""

    tokens: int
    sequence_length: int
    objective: str
    split: str
    autocast: str | None = None

    @classmethod
    def of(
        cls, source: ModelSource, tokens: str | int | None, length: int | None, objective: str | None, split: str | None
    ) -> EvaluationSettings:
        """Settings for a model.

        Raises:
            InputError: a value is wrong; the message names all of them.
        """
        recipe, own = source.recipe, source.recipe.get("evaluate", {})
        stated = own.get("tokens", TOKENS)
        # under `auto` the run's held-out text is as long as it is, and no longer than the default
        count = (TOKENS if stated == AUTO else stated) if tokens is None else parse_count(tokens)
        length = int(recipe.get("sequence_length", SEQUENCE_LENGTH)) if length is None else length
        objective = objective or str(recipe.get("objective", OBJECTIVE))
        split = split or str(own.get("split", SPLIT))
        if objective not in OBJECTIVES or split not in ("valid", "test") or not isinstance(count, int) or length < 8:
            raise InputError(
                f"evaluate: --objective is clm or mlm ({objective!r}), --split valid or test ({split!r}), --tokens a "
                f"number like 100k ({tokens!r}), --sequence-length at least 8 ({length})"
            )
        return cls(count, length, objective, split, autocast_dtype(own.get("precision"), recipe.get("train", {})))


def evaluate_cards(
    model: str | Path,
    cards: Sequence[str | Path] = (),
    *,
    files: Sequence[str | Path] = (),
    text_field: str = "text",
    stage: str | int | None = None,
    tokens: str | int | None = None,
    sequence_length: int | None = None,
    objective: str | None = None,
    split: str | None = None,
) -> list[DomainLoss]:
    """Held-out loss of a checkpoint or of a stage of a run, on the accelerator where there is one.

    Args:
        model: checkpoint folder, hub id or run folder.
        cards: domains; every held-out domain of a run where neither cards nor files are given.
        files: text files to be read as they are, each a domain that is named after it.
        text_field: of these files.
        stage: of a run, see `find_source`.
        tokens: held-out tokens per domain; what is not given is as in the run, or 100k, 256, clm and valid.
        sequence_length: tokens of a window.
        objective: `clm` or `mlm`.
        split: `valid` or `test`.

    Raises:
        InputError: a card, a file, a size or the checkpoint is wrong.
    """
    source = find_source(model, stage)
    settings = EvaluationSettings.of(source, tokens, sequence_length, objective, split)
    if not cards and not files and source.run is None:
        raise InputError(f"evaluate: {str(model)!r} is a checkpoint; name domains (--domain CARD) or files (--files F)")
    texts: list[Heldout | Domain] = [
        *(_domains(source, cards, settings) if cards or not files else ()),
        *(file_domain(file, text_field) for file in files),
    ]
    loaded = load_source(source, settings.objective)
    with TemporaryDirectory() as folder:
        heldouts = [_heldout(text, source, settings, Path(folder) / str(i)) for i, text in enumerate(texts)]
        return evaluate_heldouts(loaded, heldouts, load_tokenizer(source.tokenizer), settings)


def evaluate_heldouts(
    model: Any, heldouts: Sequence[Heldout], tokenizer: Any, settings: EvaluationSettings
) -> list[DomainLoss]:
    """Loss on each of some held-out texts, read as `settings` say."""
    kind = objective_of(settings.objective)
    return [
        evaluate_domain(
            model, heldout, objective=settings.objective, sequence_length=settings.sequence_length,
            pad_id=pad_id(tokenizer), mask_id=kind.mask_id(tokenizer), autocast=settings.autocast,
        )
        for heldout in heldouts
    ]  # fmt: skip


def load_source(source: ModelSource, objective: str) -> Any:
    """The model, on the accelerator where there is one with room for it.

    Raises:
        InputError: it cannot be loaded, or is not the one that the run started from any more.
    """
    model = load_model(source.weights, objective, dtype=source.dtype)
    is_initial = source.record is not None and source.record.index < 0
    if is_initial and source.record and weights_fingerprint(model) != source.record.fingerprints.get("model"):
        raise InputError(
            f"checkpoint {source.weights!r}: its weights are not those that the run started from; restore them, or "
            "evaluate it as a checkpoint of its own"
        )
    if not source.use_cpu:
        to_accelerator(model)
    return model


def file_domain(path: str | Path, text_field: str = "text") -> Domain:
    """A domain that is one file, or all that match a pattern, held out as a whole.

    Raises:
        InputError: no file.
    """
    whole = str(Path(path).expanduser().resolve())
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).name.partition(".")[0]).strip("-._")[:64] or "files"
    source = dict.fromkeys(("files", "valid", "test"), whole)
    return Domain.model_validate({"name": name, "source": source, "text_field": text_field})


def _domains(
    source: ModelSource, cards: Sequence[str | Path], settings: EvaluationSettings
) -> Iterator[Heldout | Domain]:
    """Of a run its own documents, where they are of the split and reach far enough; else what the card names."""
    own, section = run_heldouts(source), source.recipe.get("evaluate", {})
    stated = section.get("tokens", AUTO)
    reach = TOKENS if stated == AUTO else stated
    usable = settings.split == section.get("split", SPLIT) and settings.tokens <= reach
    for card in cards or list(own):
        name = str(card) if str(card) in own else load_domain(card).name
        yield own[name] if name in own and usable else load_domain(card)


def run_heldouts(source: ModelSource) -> dict[str, Heldout]:
    """Held-out documents of a run by domain, those of the matrix first and in its order; none for a checkpoint.

    Raises:
        InputError: the run has lost them, or they are not where it was trained.
    """
    if (run := source.run) is None:
        return {}
    rows = [read_losses(run.stage(record.name).losses) for record in read_records(run.path)]
    columns = dict.fromkeys(loss.domain for row in rows for loss in row)
    folders = {path.name: path for path in sorted(run.heldouts.glob("*")) if path.is_dir()}
    names = [*(name for name in columns if name in folders), *(name for name in folders if name not in columns)]
    if not names:
        raise InputError(f"run folder {str(run.path)!r}: has no held-out documents; name domains (--domain CARD)")
    return {name: Heldout.open(folders[name]) for name in names}


def _heldout(text: Heldout | Domain, source: ModelSource, settings: EvaluationSettings, folder: Path) -> Heldout:
    if isinstance(text, Heldout):
        return text.head(settings.tokens)
    tokenizer = load_tokenizer(source.tokenizer, text.name)
    return write_heldout(text, settings.split, tokenizer, settings.tokens, folder)
