"""Base of the phases that train: steps, rows, and results in its folder. Subclasses add what else is active."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from lifelong import distributed
from lifelong.expand import ExpansionMap
from lifelong.files import atomic_directory, read_json, write_json
from lifelong.inherit.build import stage_collator
from lifelong.ledger.folder import StageFolder
from lifelong.lm.attention import training_attention
from lifelong.lm.checkpoint import cast_weights, full_state_dict, is_sharded, load_model
from lifelong.lm.flops import forward_flops_per_token, training_flops_per_token
from lifelong.methods._grown_entries import GrownEntries
from lifelong.pipeline.phases.phase import Phase
from lifelong.pipeline.stage import Stage
from lifelong.records import Cost
from lifelong.replay.dataset import StageDataset
from lifelong.replay.memory import ReplayMemory
from lifelong.train.arguments import training_arguments
from lifelong.train.carried_moments import CarriedMoments, grown_moments, moments_beside, read_moments
from lifelong.train.phase import PhaseLog, TrainingInputs
from lifelong.train.stage_trainer import run_training_phase


@dataclass(frozen=True)
class Rows:
    """Rows that a phase trains on: `share` of it from the memory, divided among earlier domains by `weights`."""

    tokens: int
    seed: int
    corpus: Any = None
    memory: ReplayMemory | None = None
    share: float = 0.0
    weights: dict[str, float] | None = None


class TrainingPhase(Phase):
    """Weights, curve and whatever the phase adds, written to `folder` below the stage's work folder.

    The last training phase of a stage leaves the folder that is committed; it takes along what earlier ones wrote
    beside their models.
    """

    folder: ClassVar[str]
    reloads: ClassVar[bool] = True
    """Whether the next phase begins from what was written, as after a resumption, and not from this model."""
    releases: ClassVar[bool] = False
    """Whether the model is what the stage hands on, in the precision that its checkpoint came in."""

    def rows(self, stage: Stage, model: PreTrainedModel) -> Rows:
        """Rows that the phase trains on."""
        raise NotImplementedError

    def inputs(self, stage: Stage, model: PreTrainedModel, dataset: Any, num_steps: int) -> dict[str, Any]:
        """Further fields of the phase's `TrainingInputs`."""
        del stage, model, dataset, num_steps
        return {}

    def finish(self, stage: Stage, trained: TrainingInputs) -> None:
        """Hook after the last step, called in every process."""

    def write(self, stage: Stage, trained: TrainingInputs, folder: StageFolder) -> None:
        """Further files beside the model, in the main process."""

    def run(self, stage: Stage, model: PreTrainedModel) -> PreTrainedModel:
        """Train, or read what was trained."""
        folder = self.result(stage)
        there = stage.has(folder.path)
        if not there:
            low = any(stage.train_section.get(key) for key in ("bf16", "fp16"))
            half = low or model.dtype == torch.bfloat16
            with training_attention(model, stage.recipe.model.attn_implementation, half=half):
                self._train(stage, model)
        stage.result = folder
        if there or self.reloads or is_sharded(model) or (self.releases and stage.released_dtype is not None):
            return load_model(folder.model, stage.recipe.objective, dtype=stage.recipe.model.dtype)
        return model

    def curve(self, stage: Stage) -> PhaseLog | None:
        """Log and counters of the phase."""
        path = self.result(stage).curve
        return PhaseLog.from_json(read_json(path)) if path.exists() else None

    def cost(self, stage: Stage, model: PreTrainedModel) -> Iterator[tuple[str, Cost]]:
        """Training with its teachers, and the probes on the way."""
        if (curve := self.curve(stage)) is None:
            return
        length, objective = stage.recipe.sequence_length, stage.recipe.objective
        seconds = read_json(stage.work.seconds(self.name))
        flops = curve.tokens * training_flops_per_token(model, length, objective) + curve.teacher_flops
        yield self.name, Cost(curve.tokens, flops, curve.teacher_flops, seconds["seconds"])
        if curve.probe_tokens:
            probed = curve.probe_tokens * forward_flops_per_token(model, length, objective)
            yield "probe", Cost(flops=probed, seconds=seconds["probe_seconds"])

    def result(self, stage: Stage) -> StageFolder:
        """Result of the phase."""
        return stage.work.part(self.folder)

    def _train(self, stage: Stage, model: PreTrainedModel) -> None:
        run, rows = stage.context, self.rows(stage, model)
        plan = stage.plan(rows.tokens)
        arguments = training_arguments(
            stage.train_section,
            output_dir=stage.work.checkpoints(self.name),
            max_steps=plan.num_steps,
            seed=rows.seed,
        )
        dataset = StageDataset(
            rows.corpus,
            rows.memory,
            num_steps=plan.num_steps,
            blocks_per_step=plan.blocks_per_step,
            share=rows.share if rows.memory is not None else 0.0,
            weights=rows.weights or {},
            seed=rows.seed,
            stage_index=stage.index,
            domain_ids={name: column for column, name in enumerate(stage.columns)},
            domain=stage.domain.name,
        )
        stage.grown = _grown_entries(stage, model)
        stage.moments = _carried_moments(stage, model) if stage.recipe.carry_optimizer else None
        fields = {"dataset": dataset, **self.inputs(stage, model, dataset, plan.num_steps)}
        # entries that are held go back before the mean is taken
        beside = [method for method in (stage.grown, stage.average, stage.moments) if method is not None]
        fields["methods"] = [*fields.get("methods", ()), *beside]
        run.observer.phase_started(self.name, plan.num_steps * plan.tokens_per_step)
        inputs = TrainingInputs(
            self.name,
            collator=stage_collator(run.collator(rows.seed), stage.recipe.inherit),
            objective=stage.recipe.objective,
            tokens_per_step=plan.tokens_per_step,
            observer=run.observer,
            stop=run.stop,
            domains=stage.columns,
            tokens_before=sum(record.tokens for record in run.ledger.stages),
            tracker_dir=run.ledger.folder.tracker(stage.name, self.name),
            **fields,
        )
        curve = run_training_phase(model, arguments, inputs)
        if stage.grown is not None:
            stage.grown.end(model)
        self.finish(stage, inputs)
        weights = full_state_dict(model)
        distributed.run_on_main_process(lambda: self._write(stage, model, weights, curve, inputs))
        run.stop.obey()  # asked for in the last step, when there was nothing left to save

    def _write(self, stage: Stage, model: PreTrainedModel, weights: Any, curve: PhaseLog, inputs: Any) -> None:
        # times are kept beside what is committed: the folder of an interrupted run is the same, bit for bit
        times = {"seconds": curve.seconds, "probe_seconds": curve.probe_seconds}
        write_json(stage.work.seconds(self.name), times)
        with atomic_directory(self.result(stage).path) as partial:
            folder = StageFolder(partial)
            _take_along(stage.result, folder)
            write_json(folder.curve, curve.to_json() | dict.fromkeys(times, 0.0))
            self.write(stage, inputs, folder)
            released = stage.released_dtype if self.releases else None
            # rounded weights are for whoever takes the model; the next stage goes on from those that were trained
            beside = folder.trunk if released is not None else folder.path
            if not folder.trunk.exists():
                if released is not None:
                    stage.context.save_model(model, folder.trunk, weights)
                if stage.moments is not None:
                    stage.moments.write(model, beside / folder.moments.name)
            if released is not None:
                weights = None if weights is None else {name: value.to(released) for name, value in weights.items()}
                cast_weights(model, released)
            stage.context.save_model(model, folder.model, weights)


def _growth(stage: Stage) -> ExpansionMap | None:
    """The map of the stage's growth."""
    path = stage.work.grown.expansion
    return ExpansionMap.from_json(read_json(path)["map"]) if path.exists() else None


def _grown_entries(stage: Stage, model: PreTrainedModel) -> GrownEntries | None:
    rates = stage.section.expand.entry_rates if stage.section.expand is not None else None
    if rates is None or (mapping := _growth(stage)) is None:
        return None
    entries = GrownEntries(old=rates.old, new=rates.new)
    entries.begin(model, mapping)
    return entries


def _carried_moments(stage: Stage, model: PreTrainedModel) -> CarriedMoments:
    """Moments of the training phase before, of this stage or the last, at the size of the model."""
    if stage.result is not None:
        return CarriedMoments(moments=read_moments(stage.result.moments))
    path = _moments_before(stage)
    if path is None or not path.is_file():
        if stage.has_learned:
            stage.context.observer.noted(f"carry_optimizer: no moments lie beside {path}; the optimizer starts afresh")
        return CarriedMoments()
    moments = read_moments(path)
    if (mapping := _growth(stage)) is not None:
        moments = grown_moments(moments, mapping, model)
    return CarriedMoments(moments=moments)


def _moments_before(stage: Stage) -> Path | None:
    """Of the last committed stage; before the first one of the run that the checkpoint is a stage of."""
    if stage.index > 0:
        return stage.context.ledger.folder.stage(stage.previous.name).next_moments()
    source = stage.recipe.model.checkpoint
    return None if source is None else moments_beside(source)


def _take_along(earlier: StageFolder | None, folder: StageFolder) -> None:
    """Copy what an earlier training phase left beside its model."""
    for path in sorted(earlier.path.iterdir()) if earlier is not None else ():
        if earlier is not None and path not in (earlier.model, earlier.curve, earlier.moments):
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, folder.path / path.name)
