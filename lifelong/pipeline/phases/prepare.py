"""Prepares the stage's text as blocks, chosen by `select:` where the recipe says so, and its losses before training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedModel

from lifelong import distributed
from lifelong.files import read_json, write_json
from lifelong.ledger.folder import StageFolder
from lifelong.ledger.history import read_losses, write_losses
from lifelong.pipeline.phases.phase import Phase
from lifelong.pipeline.stage import Stage
from lifelong.records import Cost
from lifelong.select.corpus import SelectionInputs, select_corpus
from lifelong.stream.blocks import BlockStore
from lifelong.stream.cards.domain import Domain, load_domain
from lifelong.stream.joint import JointBlocks
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
            corpora = [stage.corpus, *(tokenized(stage, other) for other in others)]
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


def _corpus(stage: Stage, previous: PreTrainedModel) -> BlockStore:
    """The stage's domain, or what `select:` chooses of it."""
    corpus, select = tokenized(stage, stage.domain), stage.section.select
    if select is None:
        return corpus

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
