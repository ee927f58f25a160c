"""Start of a run: its tokenizer, held-out documents, initial model, and row -1 of the matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lifelong import distributed
from lifelong.errors import InputError
from lifelong.evaluate.chat import answer_prompts, check_template
from lifelong.evaluate.samples import sample_texts
from lifelong.expand import model_shape
from lifelong.files import atomic_directory, write_json
from lifelong.ledger.folder import INITIAL
from lifelong.ledger.history import read_losses
from lifelong.ledger.ledger import Ledger
from lifelong.lm.checkpoint import cast_weights, load_model, weights_fingerprint
from lifelong.lm.flops import num_parameters
from lifelong.lm.objective import objective_of
from lifelong.pipeline.commit import loss_row, precision_notes
from lifelong.pipeline.environment import computed_with, other_versions_note, package_versions
from lifelong.pipeline.run import Run
from lifelong.recipe.fresh import fresh_config
from lifelong.recipe.recipe import NOTHING_WATCHED, Recipe
from lifelong.records import UNPROTECTED_CHAT, DomainLoss, RunObserver, StageRecord
from lifelong.stream.cards.domain import Domain, load_domain
from lifelong.stream.heldout import Heldout, write_heldout
from lifelong.stream.tokenize import train_tokenizer
from lifelong.stream.tokenizers.check import merged_tokenizers, same_merge
from lifelong.stream.tokenizers.load import load_tokenizer
from lifelong.stream.tokenizers.merged import load_merged
from lifelong.train.phase import StopRequest
from lifelong.train.rehearsal import slow_weights_note

MOST_UNKNOWN = 0.1


def begin(
    ledger: Ledger, recipe: Recipe, domains: Sequence[Domain], observer: RunObserver, stop: StopRequest
) -> tuple[Run, PreTrainedModel | None]:
    """Tokenizer, held-out documents and row -1; the initial model too where it had to be made.

    `domains` are those of the stages to come; the earlier ones are known to the ledger.
    """
    by_name = {domain.name: domain for domain in domains}
    watched = watched_domains(ledger, recipe)
    columns = list(dict.fromkeys([*known_columns(ledger), *by_name]))
    tokenizer = prepare_tokenizer(ledger, recipe, list(by_name.values()), observer)
    merged = load_merged(tokenizer_folder(ledger))
    same_merge(recipe.tokenizer, merged)
    context = Run(recipe, ledger, columns, tokenizer, package_versions(), observer, stop, merged, list(watched))
    if context.is_chat:
        check_template(tokenizer)  # a run that was begun before its prompts were known goes on: not after training
    cards = {**{name: domain for name, domain in watched.items() if domain is not None}, **by_name}
    distributed.run_on_main_process(lambda: prepare_heldouts(context, cards))
    if ledger.records:
        if note := other_versions_note(ledger.records[-1].versions):
            observer.noted(note)
        return context, None
    for note in watch_notes(context):
        observer.noted(note)
    model = initial_model(recipe, tokenizer)
    if model.dtype == torch.bfloat16:
        for note in slow_weights_note(use_cpu=bool(recipe.train.get("use_cpu"))):
            observer.noted(note)
    observer.phase_started("evaluate", 0)
    losses = context.evaluate(model)
    observer.evaluated(-1, losses)
    distributed.run_on_main_process(lambda: commit_initial(context, model, losses, watched))
    if not distributed.is_main_process():
        ledger.refresh()
    return context, model


def prepare_heldouts(context: Run, by_name: Mapping[str, Domain]) -> None:
    """Write the held-out documents of every domain that are not there yet, as its own tokenizer reads them."""
    section, tokens = context.recipe.evaluate, context.recipe.evaluation_tokens
    for name in context.measured:
        folder = context.ledger.folder.heldout(name)
        if not folder.exists():
            with atomic_directory(folder) as partial:
                write_heldout(by_name[name], section.split, context.tokenizer_of(name), tokens, partial)
                if name in context.watched:
                    require_readable(name, Heldout.open(partial), context.tokenizer)


def require_readable(name: str, heldout: Heldout, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse watched text that the tokenizer cannot represent: its loss would say nothing about the model.

    Raises:
        InputError: more than `MOST_UNKNOWN` of its tokens are the unknown token.
    """
    ids = [token for index in range(len(heldout)) for token in heldout.ids(index)]
    share = sum(int(token) == tokenizer.unk_token_id for token in ids) / max(1, len(ids))
    if tokenizer.unk_token_id is not None and share > MOST_UNKNOWN:
        raise InputError(
            f"watch: {share:.0%} of the tokens of {name!r} are {tokenizer.unk_token!r}, the tokenizer cannot represent "
            f"this text (at most {MOST_UNKNOWN:.0%}); watch another domain, or take a tokenizer that knows its script"
        )


def watched_domains(ledger: Ledger, recipe: Recipe) -> dict[str, Domain | None]:
    """Names of the watched domains, with their cards; none where the run folder has the text already.

    Raises:
        InputError: a card of a domain that is watched from now on cannot be read.
    """
    found: dict[str, Domain | None] = {}
    for card in recipe.watch or ():
        name = Path(card).stem
        if name in known_watched(ledger):
            found[name] = None  # the card may be gone
        else:
            domain = load_domain(card)
            found[domain.name] = domain
    return found


def known_watched(ledger: Ledger) -> list[str]:
    """Domains that have been watched so far."""
    paths = [ledger.folder.stage(record.name).watched for record in ledger.records]
    return list(dict.fromkeys(loss.domain for path in paths if path.is_file() for loss in read_losses(path)))


def watch_notes(context: Run) -> list[str]:
    """What a user should know about what is watched, before the first stage."""
    notes = [
        f"{name} is watched and learned: what the stream does to it is counted from the base model, and is no sign of "
        "what the model keeps of other text"
        for name in context.watched
        if name in context.columns
    ]
    replay = context.recipe.replay
    proxies = {Path(card).stem for card in (replay.proxy or () if replay is not None else ())}
    notes += [
        f"{name} is watched and replayed in place of text that is gone: it tells what the model keeps of this text, "
        "and little of other text"
        for name in context.watched
        if name in proxies
    ]
    return notes + [NOTHING_WATCHED] * (context.recipe.watches_nothing)


def commit_initial(
    context: Run, model: PreTrainedModel, losses: Sequence[DomainLoss], watched: Mapping[str, Domain | None]
) -> None:
    """Row -1 of the matrix, and what the initial model writes."""
    recipe, ledger = context.recipe, context.ledger
    work = ledger.work(INITIAL)
    context.write_losses(work, losses)
    samples = sample_texts(
        model,
        context.tokenizer,
        context.heldouts,
        stage=-1,
        objective=recipe.objective,
        num_samples=recipe.evaluate.samples,
    )
    write_json(work.samples, [asdict(sample) for sample in samples])
    if context.is_chat:
        context.observer.phase_started("chat", 0)
        write_json(work.chat, answer_prompts(model, context.tokenizer, stage=-1).to_json())
        if not recipe.protects_behaviour:
            context.observer.noted(f"warning: {UNPROTECTED_CHAT}")
    record = initial_record(recipe, model, context.tokenizer_fingerprint, context.row(losses))
    cards = [domain for domain in watched.values() if domain is not None]
    record = replace(record, sources={domain.name: domain.provenance for domain in cards})
    ledger.commit(work.path, record, [ledger.folder.heldouts], computed_with())


def known_columns(ledger: Ledger) -> list[str]:
    """Domains that have been evaluated, in the order in which the stream met them."""
    rows = (read_losses(ledger.folder.stage(record.name).losses) for record in ledger.records)  # one at a time
    return list(dict.fromkeys(loss.domain for row in rows for loss in row))


def require_heldouts(ledger: Ledger) -> None:
    """Refuse to continue where the held-out documents of an earlier domain never were.

    Raises:
        InputError: names them.
    """
    known = dict.fromkeys([*known_columns(ledger), *known_watched(ledger)])
    missing = [name for name in known if not ledger.folder.heldout(name).is_dir()]
    if missing and ledger.stages:
        model = ledger.folder.model(ledger.stages[-1].name)
        raise InputError(
            f"run folder {str(ledger.out)!r}: held-out documents of {', '.join(missing)} are missing (those of a "
            f"federation stay in its silos), so that no stage can follow; start another run from its model: "
            f"model: {{checkpoint: {model}}}"
        )


def initial_record(recipe: Recipe, model: PreTrainedModel, tokenizer: str, losses: Any) -> StageRecord:
    """The first line of a ledger: the model before the stream, with the fingerprint of its tokenizer."""
    return StageRecord(
        index=-1,
        name=INITIAL,
        domain="",
        parent="",
        recipe_hash=recipe.fingerprint,
        tokens=0,
        shape=model_shape(model.config),
        parameters=num_parameters(model),
        cost={},
        row=loss_row(losses),
        fingerprints={"tokenizer": tokenizer, "model": weights_fingerprint(model)},
        seeds={"model": recipe.seed},
        versions=package_versions(),
        files={},
        notes=precision_notes(model),
        committed_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def prepare_tokenizer(
    ledger: Ledger, recipe: Recipe, domains: Sequence[Domain], observer: RunObserver
) -> PreTrainedTokenizerBase:
    """The run's tokenizer: from its folder, or trained on the stream, merged, or the checkpoint's own."""
    folder = tokenizer_folder(ledger)

    def prepare() -> None:
        if folder.exists():
            return
        observer.phase_started("prepare", 0)
        with atomic_directory(folder) as partial:
            if recipe.tokenizer is not None and recipe.tokenizer.merge is not None:
                merged = merged_tokenizers(recipe.tokenizer, recipe.model.checkpoint, recipe.model.revision)
                merged.save(partial)
                observer.noted(merged.summary())
            else:
                make_tokenizer(recipe, domains, observer).save_pretrained(partial)

    distributed.run_on_main_process(prepare)
    return load_tokenizer(folder)


def tokenizer_folder(ledger: Ledger) -> Path:
    """Folder in which a run keeps its tokenizer."""
    return (ledger.folder.initial if ledger.records else ledger.work(INITIAL)).tokenizer


def make_tokenizer(recipe: Recipe, domains: Sequence[Domain], observer: RunObserver) -> PreTrainedTokenizerBase:
    """A tokenizer as the recipe says."""
    section = recipe.tokenizer
    if section is not None and section.train is not None:
        return train_tokenizer(
            domains,
            kind=section.train.kind,
            vocab_size=section.train.vocab_size,
            max_bytes=section.train.max_bytes,
            seed=recipe.seed,
            read=observer.text_read,
        )
    source = section.checkpoint if section is not None else recipe.model.checkpoint
    return load_tokenizer(str(source), revision=recipe.revision_of(source))


def initial_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model before the first stage.

    Raises:
        InputError: its vocabulary is smaller than the tokenizer's, or its positions end before a sequence does.
    """
    if recipe.model.checkpoint is not None:
        model = load_model(recipe.model.checkpoint, recipe.objective, recipe.model.revision, recipe.model.dtype)
        check_fits(recipe, model, tokenizer)
        return model
    transformers.set_seed(recipe.seed)
    config = fresh_config(recipe, len(tokenizer), tokenizer)
    try:
        model = objective_of(recipe.objective).auto_class.from_config(config)
    except (ValueError, KeyError) as error:
        raise InputError(
            f"model.family: {recipe.model.family!r} has no head for objective {recipe.objective!r}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    return cast_weights(model, recipe.model.dtype) if recipe.model.dtype == "bfloat16" else model


def check_fits(recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer or a sequence length that the model has no room for."""
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"tokenizer: has {len(tokenizer)} tokens, the model {recipe.model.checkpoint!r} room for "
            f"{model.config.vocab_size}; use the model's own tokenizer, or grow it first: "
            f"lifelong expand {recipe.model.checkpoint} OUT --vocab-size {len(tokenizer)}"
        )
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and recipe.sequence_length > positions:
        raise InputError(
            f"sequence_length: {recipe.sequence_length} is longer than the {positions} positions of "
            f"{recipe.model.checkpoint!r}"
        )
    if objective_of(recipe.objective).masks_tokens and tokenizer.mask_token_id is None:
        raise InputError("objective: mlm needs a tokenizer with a mask token, this one has none")


def last_model(ledger: Ledger, recipe: Recipe) -> PreTrainedModel:
    """The model of the last committed stage."""
    if not ledger.stages:
        return initial_model(recipe, load_tokenizer(ledger.folder.initial.tokenizer))
    newest = ledger.folder.stage(ledger.stages[-1].name)
    return load_model(newest.next_model, recipe.objective, dtype=recipe.model.dtype)
