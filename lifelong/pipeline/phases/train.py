"""The stage's own text with a share of the memory: teacher, methods, probes, steering and schedule are active."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lifelong.evaluate.probes import probe_steps
from lifelong.files import write_json
from lifelong.inherit.build import stage_distiller
from lifelong.inherit.distiller import Distiller
from lifelong.inherit.teachers._teacher import TeacherInputs
from lifelong.ledger.folder import StageFolder, WorkFolder
from lifelong.lm.checkpoint import load_model
from lifelong.lm.flops import training_flops_per_token
from lifelong.methods._context import method_tokens, stage_context, write_exports
from lifelong.pipeline.phases.phase import PlannedTokens
from lifelong.pipeline.phases.targets import stored_targets, unstored_domains
from lifelong.pipeline.phases.training import Rows, TrainingPhase
from lifelong.pipeline.stage import Stage
from lifelong.recipe.recipe import Recipe
from lifelong.records import Cost, ProbePoint
from lifelong.replay.steering import Adjustment, ReplaySteering, first_weights, make_steering
from lifelong.train.learning_rates import (
    keep_pre_decay,
    pre_decay_checkpoint,
    stage_average,
    stage_lr_factor,
    stage_span,
)
from lifelong.train.phase import TrainingInputs
from lifelong.train.resume import load_methods, save_methods


class Train(TrainingPhase):
    """The phase that every stage has."""

    name = "train"
    folder = WorkFolder.trained.name
    reloads = False
    releases = True

    def rows(self, stage: Stage, model: PreTrainedModel) -> Rows:
        """The stage's corpus, and the memory by the methods' weights; begins the methods."""
        memory, replay = stage.memory(), stage.replay
        stage.hooks = stage_context(
            index=stage.index,
            domain=stage.domain.name,
            columns=stage.columns,
            model=model,
            has_learned=stage.has_learned,
            corpus=stage.corpus,
            memory=memory,
            collator=stage.context.collator(stage.seed),
            expansion=stage.work.grown.expansion,
            seed=stage.seed,
        )
        stage.hooks.start, stage.hooks.base = lambda: _starting_model(stage), lambda: _base_name(stage)
        stage.hooks.num_steps = stage.plan(stage.section.tokens).num_steps
        load_methods(stage.methods, stage.context.ledger.folder.stage(stage.previous.name).methods)
        for method in stage.methods:
            method.extra_tokens = 0.0
            method.begin_stage(stage.hooks)
        weights: Mapping[str, float] = {}
        if memory is not None and replay is not None:
            weights = _adjustment(stage)(first_weights(replay, memory))
        share = replay.section.share if replay else 0.0
        return Rows(stage.section.tokens, stage.seed + 2, stage.corpus, memory, share, dict(weights))

    def inputs(self, stage: Stage, model: PreTrainedModel, dataset: Any, num_steps: int) -> dict[str, Any]:
        """All that a recipe can switch on."""
        run, recipe = stage.context, stage.recipe
        steering = None if stage.replay is None else make_steering(stage.replay, dataset, _adjustment(stage))
        facts = stage.facts
        stage.average = stage_average(recipe.lr, num_steps)
        return {
            "dataset": dataset if facts is None else facts.injected(dataset),
            "distiller": _distiller(stage, model, num_steps),
            "methods": stage.methods,
            "probe": _probe(stage, model, num_steps, steering),
            "lr_factor": stage_lr_factor(
                recipe.lr, stage_span([section.tokens for section in recipe.stages], stage.index)
            ),
            "pre_decay": pre_decay_checkpoint(recipe.lr, num_steps, model, run.tokenizer, stage.work, stage.moments),
            "fact_probe": None if facts is None else facts.probe(model, num_steps),
            "steering": steering,
        }

    def finish(self, stage: Stage, trained: TrainingInputs) -> None:
        """The released model is the mean, where one was taken; then the methods end, the last first."""
        del trained
        assert stage.hooks is not None, "the methods have begun"
        if stage.average is not None:
            stage.average.running.put_into(stage.hooks.model)
        for method in reversed(stage.methods):
            method.end_stage(stage.hooks)

    def write(self, stage: Stage, trained: TrainingInputs, folder: StageFolder) -> None:
        """State and files of the methods, the weights before the decay, and how replay was steered."""
        save_methods(stage.methods, folder.methods)
        write_exports(stage.methods, folder.path)
        keep_pre_decay(stage.work, folder)
        if isinstance(trained.steering, ReplaySteering):
            write_json(folder.mix, trained.steering.mixes)

    def cost(self, stage: Stage, model: PreTrainedModel) -> Iterator[tuple[str, Cost]]:
        """Training, probes, and the passes of methods on top."""
        yield from super().cost(stage, model)
        if extra := method_tokens(self.result(stage).methods):
            length, objective = stage.recipe.sequence_length, stage.recipe.objective
            yield "methods", Cost(flops=extra * training_flops_per_token(model, length, objective))

    def planned(self, recipe: Recipe, index: int) -> PlannedTokens:
        """The stage's budget, and the probes that `evaluate.probes` asks for."""
        seen = {stage.domain for stage in recipe.stages[: index + 1]} | set(recipe.watch or ())
        evaluate = recipe.evaluate
        return PlannedTokens(recipe.stages[index].tokens, evaluate.probes * evaluate.probe_tokens * len(seen))


def _starting_model(stage: Stage) -> PreTrainedModel:
    """The weights that the phase begins with, read once more."""
    model, checkpoint = stage.recipe.model, str(stage.recipe.model.checkpoint)
    for part in (stage.work.recovered, stage.work.grown):
        if part.model.is_dir():
            return load_model(part.model, stage.recipe.objective, dtype=model.dtype)
    if stage.index == 0:
        return load_model(checkpoint, stage.recipe.objective, model.revision, model.dtype)
    newest = stage.context.ledger.folder.stage(stage.previous.name).next_model
    return load_model(newest, stage.recipe.objective, dtype=model.dtype)


def _base_name(stage: Stage) -> str:
    """Name of these weights before any growth: the checkpoint, or their path in the run folder."""
    run = stage.context.ledger.folder
    if stage.index == 0:
        return str(stage.recipe.model.checkpoint)
    return run.name_of(run.stage(stage.previous.name).next_model)


def _adjustment(stage: Stage) -> Adjustment:
    """Adjust the replay weights of earlier domains as the methods ask."""

    def adjust(weights: Mapping[str, float]) -> Mapping[str, float]:
        assert stage.hooks is not None, "the methods have begun"
        for method in stage.methods:
            weights = dict(method.mix(weights, stage.hooks))
        return weights

    return adjust


def _distiller(stage: Stage, student: PreTrainedModel, num_steps: int) -> Distiller | None:
    """The stage's teacher; a randomly initialised model has nothing to teach its first stage."""
    recipe, context = stage.recipe, stage.context
    if recipe.inherit is None:
        return None

    def heldout_nats(model: PreTrainedModel, domain: str) -> float:
        heldout = context.heldouts[context.columns.index(domain)]
        return context.evaluate_one(model, heldout, recipe.evaluate.probe_tokens).nats_per_token

    source: str | Path = str(recipe.model.checkpoint)
    if stage.index > 0:
        source = context.ledger.folder.model(stage.previous.name)
    return stage_distiller(
        recipe.inherit,
        TeacherInputs(
            temperature=recipe.inherit.temperature,
            domain=stage.domain.name,
            student=student,
            previous=source if stage.has_learned else None,
            previous_fingerprint=stage.previous.fingerprints.get("model") if stage.has_learned else None,
            objective=recipe.objective,
            sequence_length=recipe.sequence_length,
            columns=stage.columns,
            tokenizer=context.tokenizer,
            merged=context.merged,
            seed=stage.seed,
            num_steps=num_steps,
            heldout_nats=heldout_nats,
            stored=stored_targets(stage),
            unstored=unstored_domains(stage),
            previous_revision=recipe.model.revision if stage.index == 0 else None,
        ),
    )


def _probe(stage: Stage, model: PreTrainedModel, num_steps: int, steering: ReplaySteering | None) -> Any:
    """Small held-out evaluations of the domains seen so far, on a log-spaced schedule and where steering asks."""
    evaluate, context = stage.recipe.evaluate, stage.context
    due = {0, *probe_steps(num_steps, evaluate.probes)} if evaluate.probes else set()
    steered = steering.steps if steering is not None else frozenset()
    steering_names = stage.steering_domains()
    own = [context.columns[column] for column in stage.own_columns()]
    every = list(dict.fromkeys([*steering_names, *own, *context.watched]))

    def probe(step: int, tokens: int) -> Sequence[ProbePoint]:
        names = every if step in due else steering_names if step in steered else []
        training = model.training
        losses = [context.evaluate_one(model, context.heldout(name), evaluate.probe_tokens) for name in names]
        model.train(training)
        return [ProbePoint(step, tokens, loss.domain, loss.nats_per_token, loss.tokens) for loss in losses]

    return probe
