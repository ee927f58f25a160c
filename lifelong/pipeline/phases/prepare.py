"""Prepares the stage's text as blocks, chosen by `select:` where the recipe says so, and its losses before training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path

from transformers import PreTrainedModel

from lifelong import distributed
from lifelong.errors import InputError
from lifelong.files import read_json, write_json
from lifelong.ledger.folder import StageFolder
from lifelong.ledger.history import read_losses, write_losses
from lifelong.pipeline.phases.phase import Phase
from lifelong.pipeline.stage import Stage
from lifelong.records import Cost
from lifelong.select.corpus import SelectionInputs, select_corpus
from lifelong.stream.blocks import BlockStore
from lifelong.stream.cards.domain import Domain, load_domain
from lifelong.stream.cards.pieces import Pieces
from lifelong.stream.joint import JointBlocks
from lifelong.stream.shards import ShardedCorpus
from lifelong.stream.tokenize import tokenize_domain


class Prepare(Phase):
    """Tokenise, select, and evaluate the previous stage's model on domains that join now."""

    name = "prepare"

    def run(self, stage: Stage, model: PreTrainedModel) -> PreTrainedModel:
        """Give the stage its corpus."""
        stage.context.observer.phase_started(self.name, 0)
        stage.corpus = _corpus(stage, model)
        if stage.section.together_with:
            others = [load_domain(card) for card in stage.section.together_with]
            names = [stage.domain.name, *(other.name for other in others)]
            tokens = list(stage.section.tokens_by_card().values())[1:]
            corpora = [stage.corpus, *map(partial(_text, stage), others, tokens)]
            stage.corpus = JointBlocks(corpora, names, stage.section.shares)
        _evaluate_before(stage, model)
        return model

    def keep(self, stage: Stage, folder: StageFolder) -> None:
        """Keep what was selected, and the losses where forward transfer starts."""
        if stage.section.select:
            selected = read_json(stage.work.selected.selection)
            write_json(folder.selection, {key: selected[key] for key in selected if key != "seconds"})
        if stage.work.losses_before.exists():
            write_losses(folder.losses_before, read_losses(stage.work.losses_before))

    def cost(self, stage: Stage, model: PreTrainedModel) -> Iterator[tuple[str, Cost]]:
        """Scoring of documents; tokenising is not counted."""
        del model
        if stage.section.select:
            selected = read_json(stage.work.selected.selection)
            yield "select", Cost(0, selected["flops"], selected["flops"], selected["seconds"])


def tokenized(stage: Stage, domain: Domain) -> BlockStore:
    """Training blocks of a domain, by its own tokenizer."""
    return tokenize_domain(
        domain,
        "train",
        stage.context.tokenizer_of(domain.name),
        sequence_length=stage.recipe.sequence_length,
        cache_dir=stage.context.ledger.folder.cache,
        tell=stage.context.observer.noted,
        read=stage.context.observer.text_read,
    )


def corpus_for(stage: Stage, domain: Domain, tokens: float) -> BlockStore | ShardedCorpus:
    """Training blocks of a domain; of a large one as many as `tokens` need, made as they are asked for."""
    length = stage.recipe.sequence_length
    corpus = ShardedCorpus.of(
        domain,
        stage.context.tokenizer_of(domain.name),
        sequence_length=length,
        num_blocks=max(1, math.ceil(tokens / length)),
        seed=stage.seed,
        stage=stage.index,
        tell=stage.context.observer.noted,
        read=stage.context.observer.text_read,
    )
    if corpus is None:
        return tokenized(stage, domain)
    distributed.run_on_main_process(lambda: _require_same_files(stage, domain.name, corpus.pieces))
    corpus.begin()
    return corpus


def _require_same_files(stage: Stage, domain: str, pieces: Pieces) -> None:
    """Refuse to go on with a stage whose text has changed since it began.

    Raises:
        InputError: names the first file that is not as it was.
    """
    path, files = stage.work.texts, pieces.identities()
    known = read_json(path) if path.is_file() else {}
    if domain not in known:
        write_json(path, {**known, domain: files})
    elif known[domain] != files:
        changed = next((old[0] for old, new in zip_longest(known[domain], files, fillvalue=[None]) if old != new), None)
        named = changed or files[len(known[domain])][0]
        raise InputError(
            f"domain {domain}: its text has changed since stage {stage.name} began ({named!r} is not as it was; "
            f"{len(known[domain])} files then, {len(files)} now). Put it back to go on with the stage, or start "
            "another run from the last committed model"
        )


def _text(stage: Stage, domain: Domain, tokens: float) -> BlockStore | ShardedCorpus:
    """Training blocks of one domain of the stage."""
    if stage.recipe.reads_all(stage.section):
        return tokenized(stage, domain)
    share = 0.0 if stage.memory() is None or stage.recipe.replay is None else stage.recipe.replay.share
    return corpus_for(stage, domain, tokens * (1 - share))


def _corpus(stage: Stage, previous: PreTrainedModel) -> BlockStore | ShardedCorpus:
    """The stage's domain, or what `select:` chooses of it."""
    if (select := stage.section.select) is None:
        return _text(stage, stage.domain, stage.section.own_tokens)
    corpus = tokenized(stage, stage.domain)

    def selected() -> Path:
        inputs = SelectionInputs(
            section=select,
            domain=stage.domain,
            tokenizer=stage.context.tokenizer_of(stage.domain.name),
            previous=previous,
            objective=stage.recipe.objective,
            sequence_length=stage.recipe.sequence_length,
            seed=stage.recipe.seed,
            cache_dir=stage.context.ledger.folder.cache,
            use_cpu=bool(stage.recipe.train.get("use_cpu")),
        )
        return select_corpus(inputs, corpus, tokens=stage.section.own_tokens, folder=stage.work.selected.path).path

    return BlockStore(distributed.run_on_main_process(selected))


def _evaluate_before(stage: Stage, model: PreTrainedModel) -> None:
    """Loss of the previous stage's model on domains that join only now: where forward transfer starts."""
    context = stage.context
    before = context.ledger.folder.stage(stage.previous.name)
    known = {loss.domain for path in (before.losses, before.watched) if path.is_file() for loss in read_losses(path)}
    joined = [context.heldout(name) for name in context.measured if name not in known]
    if joined and not stage.has(stage.work.losses_before):
        context.observer.phase_started("evaluate", 0)
        losses = [context.evaluate_one(model, heldout) for heldout in joined]
        distributed.run_on_main_process(lambda: write_losses(stage.work.losses_before, losses))
