"""One stage of a run: grow, recover, train, evaluate, remember, commit.

Every phase writes its result below `.work/` with one rename, so that a killed run continues at the phase, and
inside training at the step, where it stopped. Earlier domains are only met through the run folder: its memory
and its held-out documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic
from typing import Any

from transformers import PreTrainedModel

from lifelong import distributed
from lifelong.errors import BrokenPromiseError
from lifelong.evaluate.facts.stage import stage_facts, stage_facts_json
from lifelong.evaluate.probes import probe_steps
from lifelong.evaluate.samples import sample_texts
from lifelong.expand import grow, model_shape, plan_expansion
from lifelong.expand.settings import ExpandSection
from lifelong.files import free_name, json_fingerprint, read_json, whole_folder, write_json
from lifelong.inherit.build import stage_collator, stage_inheritor
from lifelong.inherit.inheritor import Inheritor
from lifelong.inherit.teachers._teacher import TeacherInputs
from lifelong.ledger.history import BEFORE, read_losses, write_losses
from lifelong.ledger.ledger import stage_name
from lifelong.lm.checkpoint import is_in_parts, load_model, save_model, weights_fingerprint, whole_weights
from lifelong.lm.flops import forward_flops_per_token, num_parameters, training_flops_per_token
from lifelong.methods._context import method_tokens, stage_context, write_exports
from lifelong.methods._make import make_methods
from lifelong.methods._method import Method, StageContext
from lifelong.pipeline.commit import loss_row, replay_counts, unmapped_json, unmapped_notes
from lifelong.pipeline.run import RunContext
from lifelong.recipe.recipe import StageSection
from lifelong.records import (
    ComputeLedger,
    Cost,
    DomainLoss,
    ExpansionReport,
    ProbePoint,
    StageRecord,
)
from lifelong.replay.memory import ReplayMemory, write_generation
from lifelong.replay.steering import Adjustment, ReplaySteering, first_weights, make_steering, memory_scores
from lifelong.select.corpus import select_corpus
from lifelong.stream.blocks import BlockStore
from lifelong.stream.cards.domain import Domain, load_domain
from lifelong.stream.joint import JointBlocks
from lifelong.stream.mixing import StageDataset, stage_plan
from lifelong.stream.tokenize import tokenize_domain
from lifelong.train.arguments import blocks_per_step, training_arguments
from lifelong.train.learning_rates import TRUNK, keep_trunk, stage_level, stage_trunk
from lifelong.train.phase import Phase, PhaseCurve
from lifelong.train.resume import load_methods, save_methods
from lifelong.train.stage_trainer import train_phase

FLOAT32_LOSS_TOLERANCE = 1e-4
VERIFY_TOKENS = 2_000


class StageRun:
    """Stage `index` of a run, from the model before it to its commit."""

    def __init__(self, context: RunContext, index: int, section: StageSection, domain: Domain) -> None:
        self.context, self.recipe, self.index, self.section, self.domain = (
            context,
            context.recipe,
            index,
            section,
            domain,
        )
        self.name = stage_name(index, domain.name)
        self.work = context.ledger.work_folder(self.name)
        self.seed = self.recipe.seed + 1_000 * (index + 1)
        self.train_section = {**self.recipe.train, **section.train}
        self.methods: list[Method] = make_methods([(m.name, m.settings()) for m in self.recipe.methods])
        self.previous = context.ledger.records[-1]

    def run(self, previous_model: PreTrainedModel) -> tuple[StageRecord, PreTrainedModel]:
        """The whole stage; hands back its record and its model."""
        observer = self.context.observer
        observer.phase_started("prepare", 0)
        corpus = self._corpus(previous_model)
        if self.section.together_with:
            others = [load_domain(card) for card in self.section.together_with]
            names = [self.domain.name, *(other.name for other in others)]
            corpus = JointBlocks([corpus, *map(self._tokenized, others)], names)  # type: ignore[assignment]
        self._evaluate_before(previous_model)
        model = self._grow(previous_model)
        observer.stage_started(self.index, model_shape(model.config), num_parameters(model))
        model = self._recover(model)
        model = self._train(model, corpus)
        observer.phase_started("evaluate", 0)
        losses = self._evaluate(model)
        distributed.on_first(lambda: self._check_budget(losses))
        observer.phase_started("commit", 0)
        record = distributed.on_first(lambda: self._commit(model, losses, corpus))
        if not distributed.is_first():
            self.context.ledger.refresh()
        trunk = self.context.ledger.stage_folder(record) / TRUNK
        return record, load_model(trunk, self.recipe.objective) if trunk.is_dir() else model

    def _tokenized(self, domain: Domain) -> Any:
        """Blocks of another domain that is trained on together with the stage's own."""
        length, cache = self.recipe.sequence_length, self.context.out / ".cache"
        tokenizer = self.context.tokenizer_of(domain.name)
        return tokenize_domain(domain, "train", tokenizer, sequence_length=length, cache_dir=cache)

    def _evaluate_before(self, model: PreTrainedModel) -> None:
        """Loss of the model before this stage on domains that joined only now: where forward transfer starts."""
        known = {loss.domain for loss in read_losses(self.context.ledger.stage_folder(self.previous) / "losses.json")}
        joined = [heldout for heldout in self.context.heldouts if heldout.domain not in known]
        if joined and not self._is_there(BEFORE):
            self.context.observer.phase_started("evaluate", 0)
            losses = [self.context.evaluate_one(model, heldout) for heldout in joined]
            distributed.on_first(lambda: write_losses(self.work / BEFORE, losses))

    def _is_there(self, name: str) -> bool:
        """Whether an earlier call has got so far; all processes hear the same."""
        return distributed.on_first((self.work / name).exists)

    def _corpus(self, previous: PreTrainedModel) -> BlockStore:
        """What the stage trains on: its domain, or what `select:` chooses of it."""
        context, select = self.context, self.section.select
        corpus = tokenize_domain(
            self.domain,
            "train",
            context.tokenizer_of(self.domain.name),
            sequence_length=self.recipe.sequence_length,
            cache_dir=context.out / ".cache",
        )
        if select is None:
            return corpus

        def selected() -> Path:
            tokens, folder = self.section.tokens, self.work / "selected"
            return select_corpus(
                context, self.domain, select, corpus, tokens=tokens, previous=previous, folder=folder
            ).path

        return BlockStore(distributed.on_first(selected))

    # --- grow -----------------------------------------------------------------------------------------------

    def _grow(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.section.expand is None:
            return model
        expand, folder = self.section.expand, self.work / "grown"

        def written() -> None:
            if not folder.exists():
                self.context.observer.phase_started("grow", 0)
                with whole_folder(folder) as partial:
                    self._write_grown(model, expand, partial)

        distributed.on_first(written)
        return load_model(folder / "model", self.recipe.objective)

    def _write_grown(self, model: PreTrainedModel, expand: ExpandSection, folder: Path) -> None:
        started = monotonic()
        plan = plan_expansion(model.config, **expand.options(), **expand.sizes())
        grown, mapping, report = grow(model, plan, seed=self.seed)
        seen = self._seen_columns()
        before = [
            self.context.evaluate_one(model, self.context.heldouts[k], VERIFY_TOKENS).nats_per_token for k in seen
        ]
        after = [self.context.evaluate_one(grown, self.context.heldouts[k], VERIFY_TOKENS).nats_per_token for k in seen]
        drift = max((abs(a - b) for a, b in zip(after, before, strict=True)), default=0.0)
        report = replace(report, loss_difference=drift, seconds=monotonic() - started)
        if plan.is_exact and (not report.passed or drift > FLOAT32_LOSS_TOLERANCE):
            raise BrokenPromiseError(
                f"stage {self.name}: the grown model does not compute the same function: logits differ by "
                f"{report.max_logit_difference_float64:.1e} in float64 (allowed {report.tolerance:.0e}), held-out loss "
                f"by {drift:.1e} nats; nothing was committed"
            )
        save_model(grown, self.context.tokenizer, folder / "model")
        write_json(folder / "expansion.json", {**report.to_json(), "map": mapping.to_json()})
        self.context.observer.expanded(report)

    # --- recover and train ----------------------------------------------------------------------------------

    def _recover(self, model: PreTrainedModel) -> PreTrainedModel:
        recover, memory = self.recipe.recover, self._memory()
        if not recover or not recover.tokens or self.section.expand is None or memory is None:
            return model
        folder = self.work / "recovered"
        if not self._is_there("recovered"):
            self._train_phase("recover", model, folder, recover.tokens, memory=memory, share=1.0, seed=self.seed + 1)
        return load_model(folder / "model", self.recipe.objective)

    def _train(self, model: PreTrainedModel, corpus: Any) -> PreTrainedModel:
        folder = self.work / "trained"
        if self._is_there("trained"):
            return load_model(folder / "model", self.recipe.objective)
        context = stage_context(
            self.context, self.index, self.domain.name, model, corpus, self._memory(), self.work, self.seed
        )
        self._begin_methods(context)
        replay = self.recipe.replay
        self._train_phase(
            "train",
            model,
            folder,
            self.section.tokens,
            corpus=corpus,
            memory=self._memory(),
            share=replay.share if replay else 0.0,
            seed=self.seed + 2,
            inheritor=self._inheritor(model),
            context=context,
        )
        return load_model(folder / "model", self.recipe.objective) if is_in_parts(model) else model

    def _begin_methods(self, context: StageContext) -> None:
        load_methods(self.methods, self.context.ledger.stage_folder(self.previous) / "methods.safetensors")
        for method in self.methods:
            method.extra_tokens = 0.0
            method.begin_stage(context)

    def _train_phase(
        self,
        name: str,
        model: PreTrainedModel,
        folder: Path,
        tokens: int,
        *,
        memory: ReplayMemory | None,
        share: float,
        seed: int,
        corpus: Any = None,
        inheritor: Inheritor | None = None,
        context: StageContext | None = None,
    ) -> None:
        """Train through one phase and leave weights, curve and method state in `folder`."""
        run = self.context
        plan = stage_plan(tokens, self.recipe.sequence_length, self._blocks_per_step())
        arguments = training_arguments(
            self.train_section,
            output_dir=self.work / f"{name}-checkpoints",
            max_steps=plan.num_steps,
            seed=seed,
        )
        dataset = StageDataset(
            corpus,
            memory,
            num_steps=plan.num_steps,
            blocks_per_step=plan.blocks_per_step,
            share=share if memory is not None else 0.0,
            weights=self._replay_weights(memory, context),
            seed=seed,
            stage_index=self.index,
            domain_ids={name: column for column, name in enumerate(run.columns)},
            domain=self.domain.name,
        )
        steering = make_steering(run, dataset, self._adjustment(context)) if context is not None else None
        facts = stage_facts(run, self.index) if context is not None else None
        if facts is not None:
            dataset = facts.injected(dataset)
        run.observer.phase_started(name, plan.num_steps * plan.tokens_per_step)
        phase = Phase(
            name,
            dataset,
            stage_collator(run.collator(seed), self.recipe.inherit),
            self.recipe.objective,
            plan.tokens_per_step,
            inheritor,
            methods=self.methods if context is not None else (),
            probe=self._probe(model, plan.num_steps, steering) if context is not None else None,
            observer=run.observer,
            stop=run.stop,
            lr_level=stage_level(self.recipe, self.index) if context is not None else None,
            trunk=stage_trunk(self.recipe, plan.num_steps, model, run.tokenizer, self.work) if context else None,
            domains=run.columns,
            tokens_before=sum(record.tokens for record in run.ledger.stages),
            tracker_dir=run.out / "trackers" / f"{self.name}-{name}",
            fact_probe=facts.probe(model, plan.num_steps) if facts is not None else None,
            steering=steering,
        )
        curve = train_phase(model, arguments, phase)
        if context is not None:
            for method in reversed(self.methods):  # what was put around the model last comes off first
                method.end_stage(context)
        # times stand beside what is committed: the folder of an interrupted run is the same, bit for bit
        times = {"seconds": curve.seconds, "probe_seconds": curve.probe_seconds}
        weights = whole_weights(model)

        def written() -> None:
            write_json(self.work / f"{name}-seconds.json", times)
            with whole_folder(folder) as partial:
                run.save_model(model, partial / "model", weights)
                write_json(partial / "curve.json", curve.to_json() | dict.fromkeys(times, 0.0))
                save_methods(self.methods if context is not None else (), partial / "methods.safetensors")
                write_exports(self.methods if context is not None else (), partial)
                if context is not None:
                    keep_trunk(self.work, partial)
                if steering is not None:
                    write_json(partial / "mix.json", steering.mixes)

        distributed.on_first(written)
        run.stop.obey()  # asked for in the last step, when there was nothing left to save

    def _blocks_per_step(self) -> int:
        probe = training_arguments(self.train_section, output_dir=self.work, max_steps=1, seed=self.seed)
        return blocks_per_step(probe)

    def _memory(self) -> ReplayMemory | None:
        folder = self.context.ledger.generation(self.index)
        return ReplayMemory.open(folder) if folder is not None and self.recipe.replay is not None else None

    def _replay_weights(self, memory: ReplayMemory | None, context: StageContext | None) -> dict[str, float]:
        """How replay is spread over the earlier domains when the phase begins."""
        if memory is None or self.recipe.replay is None:
            return {}
        return dict(self._adjustment(context)(first_weights(self.context, memory)))

    def _adjustment(self, context: StageContext | None) -> Adjustment:
        """What the methods make of the weights by which earlier domains are replayed."""

        def adjust(weights: Mapping[str, float]) -> Mapping[str, float]:
            if context is not None:
                for method in self.methods:
                    weights = dict(method.mix(weights, context))
            return weights

        return adjust

    def _inheritor(self, student: PreTrainedModel) -> Inheritor | None:
        """The teacher of this stage; a model from random weights has nothing to hand down to its first stage."""
        if self.recipe.inherit is None:
            return None
        learned = self.index > 0 or self.recipe.model.checkpoint is not None
        plan = stage_plan(self.section.tokens, self.recipe.sequence_length, self._blocks_per_step())
        return stage_inheritor(
            TeacherInputs(
                inherit=self.recipe.inherit,
                domain=self.domain.name,
                student=student,
                previous=self._previous_source() if learned else None,
                previous_fingerprint=self.previous.fingerprints.get("model") if learned else None,
                objective=self.recipe.objective,
                sequence_length=self.recipe.sequence_length,
                columns=self.context.columns,
                tokenizer=self.context.tokenizer,
                merged=self.context.merged,
                seed=self.seed,
                num_steps=plan.num_steps,
                heldout_nats=self._probe_nats,
            )
        )

    def _probe_nats(self, model: PreTrainedModel, domain: str) -> float:
        """Loss on the held-out text of a domain that probes look at, nats per token."""
        heldout = self.context.heldouts[self.context.columns.index(domain)]
        return self.context.evaluate_one(model, heldout, self.recipe.evaluate.probe_tokens).nats_per_token

    def _previous_source(self) -> str | Path:
        if self.index == 0:
            return str(self.recipe.model.checkpoint)
        return self.context.ledger.stage_folder(self.previous) / "model"

    def _probe(self, model: PreTrainedModel, num_steps: int, steering: ReplaySteering | None) -> Any:
        """Small held-out evaluations of the domains seen so far, on a log-spaced schedule and where steering asks."""
        evaluate = self.recipe.evaluate
        due = {0, *probe_steps(num_steps, evaluate.probes)} if evaluate.probes else set()
        steered = steering.steps if steering is not None else frozenset()
        seen, own = self._seen_columns(), self._own_column()

        def probe(step: int, tokens: int) -> Sequence[ProbePoint]:
            columns = [*seen, *own] if step in due else seen if step in steered else []
            training = model.training
            losses = [
                self.context.evaluate_one(model, self.context.heldouts[k], evaluate.probe_tokens) for k in columns
            ]
            model.train(training)
            return [ProbePoint(step, tokens, loss.domain, loss.nats_per_token, loss.tokens) for loss in losses]

        return probe

    def _seen_columns(self) -> list[int]:
        """Columns of the domains of earlier stages."""
        seen = {record.domain for record in self.context.ledger.stages}
        return [column for column, name in enumerate(self.context.columns) if name in seen]

    def _own_column(self) -> list[int]:
        own = self.context.columns.index(self.domain.name)
        return [] if own in self._seen_columns() else [own]

    # --- evaluate, remember, commit -------------------------------------------------------------------------

    def _evaluate(self, model: PreTrainedModel) -> list[DomainLoss]:
        path = self.work / "trained" / "losses.json"
        if not self._is_there("trained/losses.json"):
            started = monotonic()
            found = self.context.evaluate(model)
            seconds = monotonic() - started

            def written() -> None:
                write_json(self.work / "evaluate-seconds.json", seconds)
                samples = sample_texts(
                    model,
                    self.context.tokenizer,
                    self.context.heldouts,
                    stage=self.index,
                    objective=self.recipe.objective,
                    num_samples=self.recipe.evaluate.samples,
                )
                write_json(self.work / "trained" / "samples.json", [asdict(sample) for sample in samples])
                write_losses(path, found)

            distributed.on_first(written)
        losses = list(read_losses(path))
        self.context.observer.evaluated(self.index, losses)
        return losses

    def _check_budget(self, losses: Sequence[DomainLoss]) -> None:
        """A broken forgetting budget leaves the stage in `rejected/`, uncommitted."""
        if not self.recipe.budget:
            return
        earlier = [read_losses(self.context.ledger.stage_folder(r) / "losses.json") for r in self.context.ledger.stages]
        broken = []
        for loss in losses:
            allowed = self.recipe.budget.get(loss.domain)
            best = min((old.perplexity for row in earlier for old in row if old.domain == loss.domain), default=None)
            seen = any(record.domain == loss.domain for record in self.context.ledger.stages)
            if allowed is None or best is None or not seen:
                continue
            rise = loss.perplexity / best - 1
            if rise > allowed:
                broken.append(f"{loss.domain}: perplexity rose by {rise:.1%}, the budget is {allowed:.1%}")
        if broken:
            rejected = free_name(self.context.out / "rejected" / self.name)
            rejected.parent.mkdir(exist_ok=True)
            (self.work / "trained").rename(rejected)
            raise BrokenPromiseError(
                f"stage {self.name} breaks its forgetting budget and is not committed; it lies in {rejected}\n  "
                + "\n  ".join(broken)
                + "\n  raise replay.share, max_share or memory_tokens, lower train.learning_rate or tokens,"
                "\n  and give the same command with such a --set: it goes on from the last committed stage"
            )

    def _commit(self, model: PreTrainedModel, losses: Sequence[DomainLoss], corpus: Any) -> StageRecord:
        context, trained = self.context, self.work / "trained"
        curves = self._gather_curves(trained)
        memory_folders = self._remember(model, corpus)
        if self.section.select:
            selected = read_json(self.work / "selected" / "selection.json")
            write_json(trained / "selection.json", {key: selected[key] for key in selected if key != "seconds"})
        cost = self._cost(model, curves, losses)
        if (self.work / BEFORE).exists():
            write_losses(trained / BEFORE, read_losses(self.work / BEFORE))
        expansion = None
        if self.section.expand:
            written = read_json(self.work / "grown" / "expansion.json")
            write_json(trained / "expansion.json", {key: value for key, value in written.items() if key != "seconds"})
            expansion = {**ExpansionReport.from_json(written).to_json(), "map": json_fingerprint(written["map"])}
        record = StageRecord(
            index=self.index,
            name=self.name,
            domain=self.domain.name,
            parent="",
            recipe_hash=self.recipe.fingerprint,
            tokens=sum(curve.tokens for curve in curves),
            shape=model_shape(model.config),
            parameters=num_parameters(model),
            cost=cost.to_json(),
            row=loss_row(losses),
            fingerprints={
                "corpus": corpus.fingerprint,
                "tokenizer": context.tokenizer_fingerprint,
                "model": weights_fingerprint(model),
            },
            seeds={"stage": self.seed},
            versions=context.versions,
            files={},
            expansion=expansion,
            replay=replay_counts(curves),
            notes=unmapped_notes(curves),
            committed_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        return context.ledger.commit(trained, record, [*memory_folders, *self._new_heldouts()])

    def _new_heldouts(self) -> list[Path]:
        """Held-out folders that no earlier record lists: those of a domain that joined with this stage."""
        listed = {
            name.split("/")[1] for r in self.context.ledger.records for name in r.files if name.startswith("heldout/")
        }
        return [self.context.out / "heldout" / name for name in self.context.columns if name not in listed]

    def _gather_curves(self, trained: Path) -> list[PhaseCurve]:
        """Curves of all phases of the stage, written as one `history.json`."""
        history = trained / "history.json"
        folders = [self.work / "recovered", trained]
        curves = [PhaseCurve.from_json(read_json(f / "curve.json")) for f in folders if (f / "curve.json").exists()]
        write_json(
            history,
            {
                "train": [asdict(point) for curve in curves for point in curve.train],
                "probes": [asdict(point) for curve in curves for point in curve.probes],
                "facts": stage_facts_json(self.context, self.index, curves),
                **unmapped_json(curves),
            },
        )
        return curves

    def _remember(self, model: PreTrainedModel, corpus: BlockStore) -> list[Path]:
        """Write the next generation of the memory beside the last one, which stays until this stage is committed."""
        replay = self.recipe.replay
        if replay is None or not replay.memory_tokens:
            return []
        previous, folder = self.context.ledger.generation(self.index), self.context.out / "memory" / f"{self.index:02d}"
        if not folder.exists():
            with whole_folder(folder) as partial:
                write_generation(
                    previous,
                    self.domain.name,
                    corpus,
                    capacity_tokens=replay.memory_tokens,
                    policy=replay.policy,
                    seed=self.recipe.seed,
                    out=partial,
                    stage=self.index,
                    scores=memory_scores(self.context, model, corpus, self.index),
                )
        return [folder]

    def _cost(
        self, model: PreTrainedModel, curves: Sequence[PhaseCurve], losses: Sequence[DomainLoss]
    ) -> ComputeLedger:
        """FLOPs and seconds by phase, the teacher's passes included."""
        length, objective = self.recipe.sequence_length, self.recipe.objective
        step_flops = training_flops_per_token(model, length, objective)
        forward_flops = forward_flops_per_token(model, length, objective)
        cost = ComputeLedger()
        for curve in curves:
            phase = "train" if curve is curves[-1] else "recover"
            taught = curve.teacher_flops
            seconds = read_json(self.work / f"{phase}-seconds.json")
            cost = cost.adding(
                phase, Cost(curve.tokens, curve.tokens * step_flops + taught, taught, seconds["seconds"])
            )
            if curve.probe_tokens:
                probed = Cost(flops=curve.probe_tokens * forward_flops, seconds=seconds["probe_seconds"])
                cost = cost.adding("probe", probed)
        if self.section.select:
            selected = read_json(self.work / "selected" / "selection.json")
            cost = cost.adding("select", Cost(0, selected["flops"], selected["flops"], selected["seconds"]))
        if self.section.expand:
            seconds = read_json(self.work / "grown" / "expansion.json")["seconds"]
            cost = cost.adding("grow", Cost(seconds=seconds))
        if extra := method_tokens(self.work / "trained" / "methods.safetensors"):
            cost = cost.adding("methods", Cost(flops=extra * step_flops))
        evaluated = sum(loss.tokens for loss in losses)
        seconds = read_json(self.work / "evaluate-seconds.json")
        return cost.adding("evaluate", Cost(0, evaluated * forward_flops, 0.0, seconds))
