"""A dry run: shape, cost and requirements of every stage, from configurations alone; no weights are loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lifelong.errors import InputError
from lifelong.expand import model_shape
from lifelong.inherit.settings import PREVIOUS, InheritSection
from lifelong.ledger.folder import parse_stage_model
from lifelong.lm.checkpoint import meta_model, stored_dtype
from lifelong.lm.flops import (
    forward_flops_per_token,
    head_flops_per_token,
    num_parameters,
    training_flops_per_token,
)
from lifelong.methods._make import make_methods
from lifelong.pipeline.phases import PHASES
from lifelong.pipeline.phases.targets import needs_targets, planned_memory, planned_visits
from lifelong.plan.advice import warnings_of
from lifelong.plan.disk import DiskPlan, StageFiles, disk_plan
from lifelong.plan.memory import BFLOAT16, FLOAT32, DeviceMemory, Devices, Held, device_memory, moment_bytes
from lifelong.plan.regimes import regime_advice
from lifelong.plan.shapes import Shapes
from lifelong.plan.speed import Speed
from lifelong.plan.text import CorpusSample, sample_corpora
from lifelong.recipe.check import check_recipe
from lifelong.recipe.files import load_recipe, parse_recipe
from lifelong.recipe.recipe import Recipe
from lifelong.replay.steering import STEERED, affordable_probes
from lifelong.report.units import quantity
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.steps import stage_plan
from lifelong.train.arguments import blocks_per_step, micro_batches, training_arguments
from lifelong.train.learning_rates import stage_curve, stage_span, warmup_steps
from lifelong.train.policies._policy import make_policy
from lifelong.train.rehearsal import OF_THE_DEVICE, slow_weights_note

DECODING = 10.0
"""Times longer that a token takes which is written, batch by batch, than its FLOPs would take in training."""
BYTES_PER_PARAMETER = 16  # float32 weight, gradient and two Adam moments


@dataclass(frozen=True)
class PlannedStage:
    """One stage before it is run.

    `flops` include those of teacher and methods; `evaluation_flops` and `generation_flops` (of the `generated_tokens`
    that the model before writes) come on top. `training_state_bytes` are weights, gradients and moments on one device,
    `memory` what one of the planned devices holds at its fullest. `learning_rates` are taken in the middle of equal
    parts of the stage. `seconds` is None where no speed is known.
    """

    index: int
    domain: str
    shape: dict[str, int]
    parameters: int
    tokens: int
    steps: int
    replay_share: float
    peak_learning_rate: float
    warmup_steps: int
    learning_rates: tuple[float, ...]
    flops: float
    teacher_flops: float
    evaluation_flops: float
    training_state_bytes: int
    checkpoint_bytes: int
    trunk_bytes: int
    resumable_bytes: int
    memory: DeviceMemory
    seconds: float | None = None
    generated_tokens: int = 0
    generation_flops: float = 0.0


@dataclass(frozen=True)
class RunPlan:
    """The stages of a recipe on some devices, what looks unwise in it, and what the plan could not know."""

    name: str
    stages: tuple[PlannedStage, ...]
    warnings: tuple[str, ...]
    devices: Devices
    disk: DiskPlan
    speed: Speed | None = None
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float | None:
        """Seconds of all stages; None where no speed is known."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if len(known) == len(self.stages) else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, totals included."""
        plain = asdict(self)
        for entry, stage in zip(plain["stages"], self.stages, strict=True):
            entry["memory"] = stage.memory.to_json()
        speed = None if self.speed is None else self.speed.describe()
        return {**plain, "disk": self.disk.to_json(), "speed": speed, "seconds": self.seconds}


def plan_recipe(
    recipe: Recipe | str | Path,
    devices: Devices | None = None,
    *,
    speed: Speed | None = None,
    text: bool = False,
) -> RunPlan:
    """Plan a run.

    Args:
        recipe: a `Recipe`, or the name or path of one.
        devices: what it is to run on; one device without a GPU where absent.
        speed: of one device; no times without it.
        text: look at the beginning of every corpus that is here.

    Raises:
        InputError: everything that `run` would refuse about recipe, cards and growth.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    devices, shapes = devices or Devices(), Shapes()
    with runs_to_come(recipe, shapes) as there:
        check_recipe(there, here=False)
    first, configs = shapes.first(recipe), shapes.stages(recipe)
    look = sample_corpora(recipe) if text else CorpusSample({}, (), {})
    stages = [
        _planned(recipe, index, before, config, devices, shapes)
        for index, (before, config) in enumerate(zip([first, *configs[:-1]], configs, strict=True))
    ]
    if speed is not None:
        stages = [
            replace(
                stage,
                seconds=speed.seconds(
                    stage.flops + stage.evaluation_flops + DECODING * stage.generation_flops,
                    devices.count,
                    config,
                    section,
                ),
            )
            for stage, config, section in zip(
                stages, configs, (_train(recipe, i) for i in range(len(stages))), strict=True
            )
        ]
    files = [
        StageFiles(
            stage.checkpoint_bytes,
            stage.trunk_bytes,
            stage.resumable_bytes,
            _checkpoints_kept(recipe, index),
            2 * _bytes_of(_held(recipe, shapes)) * stage.parameters * bool(recipe.carry_optimizer),
        )
        for index, stage in enumerate(stages)
    ]
    disk = disk_plan(recipe, files, look.facts, look.vocab_size or int(configs[-1].vocab_size))
    base = num_parameters(meta_model(first, recipe.objective))
    warnings = [*warnings_of(recipe, stages, shapes), *regime_advice(recipe, stages, base, look.facts), *look.warnings]
    return RunPlan(
        recipe.name,
        tuple(stages),
        tuple(warnings),
        devices,
        disk,
        speed,
        tuple(_notes(recipe, stages, shapes, look, devices)),
    )


@contextlib.contextmanager
def runs_to_come(recipe: Recipe, shapes: Shapes) -> Iterator[Recipe]:
    """The recipe with the stages of runs that are not there yet replaced by their configurations alone."""
    plain = recipe.to_plain()
    with TemporaryDirectory() as folder:
        for number, source in enumerate(sorted(_named(plain))):
            if parse_stage_model(source) is not None and not Path(source).exists():
                stand_in = Path(folder) / str(number)
                shapes.of(source).save_pretrained(stand_in)
                plain = _replaced(plain, source, str(stand_in))
        yield parse_recipe(plain)


def _named(plain: Any) -> set[str]:
    if isinstance(plain, dict):
        return {text for value in plain.values() for text in _named(value)}
    if isinstance(plain, list):
        return {text for value in plain for text in _named(value)}
    return {plain} if isinstance(plain, str) else set()


def _replaced(plain: Any, old: str, new: str) -> Any:
    if isinstance(plain, dict):
        return {key: _replaced(value, old, new) for key, value in plain.items()}
    if isinstance(plain, list):
        return [_replaced(value, old, new) for value in plain]
    return new if plain == old else plain


def _train(recipe: Recipe, index: int) -> dict[str, Any]:
    return {**recipe.train, **recipe.stages[index].train}


def stage_arguments(recipe: Recipe, index: int, devices: int = 1) -> Any:
    """TrainingArguments of a stage on one of the devices that share its steps, without what only a device can have.

    Raises:
        InputError: a step cannot be divided among the devices.
    """
    train = {key: value for key, value in _train(recipe, index).items() if key not in OF_THE_DEVICE}
    train |= micro_batches(train, devices)
    return training_arguments(train, output_dir=Path("unused"), max_steps=1, seed=0)


def _planned(recipe: Recipe, index: int, before: Any, config: Any, devices: Devices, shapes: Shapes) -> PlannedStage:
    section, length, objective = recipe.stages[index], recipe.sequence_length, recipe.objective
    arguments = stage_arguments(recipe, index)
    plan = stage_plan(section.tokens, length, blocks_per_step(arguments))
    phases = [phase.planned(recipe, index) for phase in PHASES]
    model = meta_model(config, objective)
    teachers = _teachers(recipe, index, before, shapes)
    teacher_flops = 0.0
    if teachers and recipe.inherit is not None:
        each = {
            name: forward_flops_per_token(meta_model(teacher, objective), length, objective)
            for name, teacher in teachers
        }
        asked = head_flops_per_token(model) if recipe.inherit.schedule == "dynamic" else 0.0
        taught = plan.tokens * taught_share(recipe.inherit)
        teacher_flops = taught * (recipe.inherit.teacher.flops_per_token(each) + asked)
    earlier = meta_model(before, objective)
    ahead = [phase.planned_before(recipe, index, before) for phase in PHASES]
    stored = sum(part.targeted for part in ahead) + _visited_online(recipe, index)
    teacher_flops += stored * forward_flops_per_token(earlier, length, objective)
    generated = [part for part in ahead if part.generated]
    parameters = num_parameters(model)
    trained = sum(stage_plan(part.trained, length, plan.blocks_per_step).tokens for part in phases if part.trained)
    evaluated = sum(part.evaluated for part in phases) + _steering_tokens(recipe, index, plan.tokens)
    forward = forward_flops_per_token(model, length, objective)
    lr, span = recipe.lr, stage_span([stage.tokens for stage in recipe.stages], index)
    low = any(_train(recipe, index).get(name) for name in ("bf16", "fp16"))
    averages = lr is not None and lr.average is not None
    leaves_trunk = lr is not None and make_policy(lr).leaves_trunk
    written, size = _stored_dtype(recipe, shapes), _bytes_of(held := _held(recipe, shapes))
    whole = held.adapter is None or (index == 0 and recipe.model.checkpoint is None)
    kept = moment_bytes(arguments, rounds=size == BFLOAT16) if whole else 0.0
    return PlannedStage(
        index=index,
        domain=load_domain(section.domain).name,
        shape=model_shape(config),
        parameters=parameters,
        tokens=trained,
        steps=trained // plan.tokens_per_step,
        replay_share=recipe.replay.share if recipe.replay and any((index, *_beforehand(recipe))) else 0.0,
        peak_learning_rate=float(arguments.learning_rate),
        warmup_steps=warmup_steps(lr, span, arguments, plan.num_steps),
        learning_rates=tuple(stage_curve(lr, span, arguments, plan.num_steps)),
        flops=(trained + _method_tokens(recipe, index, plan.num_steps))
        * training_flops_per_token(model, length, objective)
        + teacher_flops,
        teacher_flops=teacher_flops,
        evaluation_flops=evaluated * forward,
        generated_tokens=sum(part.generated for part in generated),
        generation_flops=sum(
            part.generated * forward_flops_per_token(earlier, part.stream_length, objective) for part in generated
        ),
        training_state_bytes=parameters * BYTES_PER_PARAMETER * size // FLOAT32,
        checkpoint_bytes=parameters * (BFLOAT16 if written == "bfloat16" else size),
        trunk_bytes=parameters * size if leaves_trunk or written != held.dtype else 0,
        resumable_bytes=int(parameters * (size + FLOAT32 * averages + kept)),
        memory=device_memory(
            config,
            stage_arguments(recipe, index, devices.count),
            devices,
            objective=objective,
            length=length,
            teachers=[teacher for _, teacher in teachers],
            low_precision=low,
            held=Held(held.dtype) if whole else held,
        ),
    )


def _stored_dtype(recipe: Recipe, shapes: Shapes) -> str:
    """Precision that the models of a run are written in."""
    own = "float32" if recipe.model.checkpoint is None else stored_dtype(shapes.first(recipe))
    return "bfloat16" if recipe.model.dtype == "bfloat16" or own == "bfloat16" else "float32"


def _bytes_of(held: Held) -> int:
    return BFLOAT16 if held.dtype == "bfloat16" else FLOAT32


def _held(recipe: Recipe, shapes: Shapes) -> Held:
    """How the stages of a recipe hold their weights."""
    dtype = _stored_dtype(recipe, shapes) if recipe.model.dtype == "auto" else recipe.model.dtype
    for method in recipe.methods:
        if method.name == "lora":
            settings = {"name": method.name, **method.settings()}
            base = str(settings.pop("base", "same"))
            adapter = tuple(
                (key, tuple(value) if isinstance(value, list) else value) for key, value in settings.items()
            )
            return Held(dtype, None if base == "same" else base, tuple(sorted(adapter)))
    return Held(dtype)


def _teachers(recipe: Recipe, index: int, before: Any, shapes: Shapes) -> list[tuple[str, Any]]:
    """The models that run beside the student in a stage: names in the recipe, and configurations."""
    if recipe.inherit is None or recipe.inherit.alpha == 0:
        return []
    learned = index > 0 or recipe.model.checkpoint is not None
    names = recipe.inherit.teacher.models()
    if _visited_online(recipe, index) and PREVIOUS not in names:
        names = [*names, PREVIOUS]
    return [(name, before if name == PREVIOUS else shapes.of(name)) for name in names if name != PREVIOUS or learned]


def _visited_online(recipe: Recipe, index: int) -> float:
    """Tokens of kept text that the previous model teaches as they come, where targets are to be stored otherwise."""
    kept, _ = planned_memory(recipe, index)
    if not needs_targets(recipe) or (index == 0 and recipe.model.checkpoint is None):
        return 0.0
    visited = planned_visits(recipe, index)
    return 0.0 if visited.stores_kept else visited.kept * sum(kept.values())


def _steering_tokens(recipe: Recipe, index: int, trained: int) -> float:
    """Tokens of the probes by which replay is steered."""
    seen, replay = len({stage.domain for stage in recipe.stages[:index]}), recipe.replay
    if replay is None or not seen or not replay.share or recipe.replay_mix not in STEERED:
        return 0.0
    probed = recipe.evaluate.probe_tokens * seen
    return float(probed * (affordable_probes(trained, probed) if replay.probes is None else replay.probes))


def _beforehand(recipe: Recipe) -> tuple[bool, bool]:
    """Whether the first stage finds something to replay: public text, or what a pre-trained base writes."""
    replay = recipe.replay
    return bool(replay and replay.proxy), bool(replay and replay.generate and recipe.model.checkpoint is not None)


def _checkpoints_kept(recipe: Recipe, index: int) -> int:
    """Resumable checkpoints of a stage at a time, the one being written included."""
    return int(stage_arguments(recipe, index).save_total_limit or 2) + 1


def _method_tokens(recipe: Recipe, index: int, num_steps: int) -> float:
    """Tokens that the methods pass forward and backward beside training."""
    earlier = len({section.domain for section in recipe.stages[:index]})
    methods = make_methods([(method.name, method.settings()) for method in recipe.methods])
    return sum(method.planned_tokens(num_steps, recipe.sequence_length, earlier) for method in methods)


def taught_share(inherit: InheritSection) -> float:
    """Share of a stage's tokens on which the teacher runs, where all tokens are taught."""
    if inherit.alpha == 0 or not inherit.teacher.models():
        return 0.0
    span = 1.0 if inherit.schedule == "constant" else inherit.last_progress
    if not inherit.bernoulli:
        return span
    mean = {"linear": 0.5, "cosine": 0.5, "step": 1.0, "constant": 1.0}[inherit.schedule]
    return span * mean * inherit.alpha


def _notes(
    recipe: Recipe, stages: Sequence[PlannedStage], shapes: Shapes, look: CorpusSample, devices: Devices
) -> list[str]:
    """Notes on the assumptions of the plan."""
    notes = [f"{source} does not exist yet: planned from recipe {writer}" for source, writer in shapes.coming.items()]
    notes += _unread_notes(look.unread)
    notes += [
        f"{fact.name}: of {quantity(fact.text_bytes, 'B')} of text {quantity(fact.read_bytes, 'B')} will be read, in "
        f"pieces from all over it, and tokenised while it trains, {fact.read_bytes * fact.encoding_seconds:,.0f} s of "
        "this processor"
        for fact in look.facts.values()
        if fact.read_bytes < fact.text_bytes
    ]
    for index, section in enumerate(recipe.stages):
        if section.shares is not None:
            parts = [f"{Path(card).stem} {tokens:,.0f}" for card, tokens in section.tokens_by_card().items()]
            notes.append(f"stage {index}: tokens by domain: {', '.join(parts)}")
    if recipe.methods:
        names = ", ".join(method.name for method in recipe.methods)
        notes.append(f"tensors that methods keep for themselves ({names}) are not in the memory figures")
    notes += _memory_notes(recipe, stages)
    if recipe.lr is not None and recipe.lr.average is not None:
        notes.append("lr.average keeps one more float32 copy of the weights on every device, not in the memory figures")
    compiled = any(_train(recipe, index).get("torch_compile") for index in range(len(recipe.stages)))
    if _held(recipe, shapes).dtype == "bfloat16" and devices.kind == "cpu":
        notes += slow_weights_note(use_cpu=True)
    if compiled:
        notes.append("torch_compile: activations are counted as without it; a compiled step keeps fewer")
    return notes


def _unread_notes(unread: Mapping[str, str]) -> Iterator[str]:
    """Which text was not read and why; cards whose reasons differ in file names alone have one note, with the first."""
    hub = [card for card, reason in unread.items() if "hub" in reason and card != "tokenizer"]
    if hub:
        yield f"text on the hub was not read: {', '.join(hub)}; its size on disk is that of the stages"
    alike: dict[str, dict[str, str]] = {}
    for card, reason in unread.items():
        if card not in hub:
            line = reason.splitlines()[0]
            alike.setdefault(" ".join(word for word in line.split() if "/" not in word), {})[card] = line
    for lines in alike.values():
        yield f"{', '.join(lines)}: {'was' if len(lines) == 1 else 'were'} not read ({next(iter(lines.values()))})"


def _memory_notes(recipe: Recipe, stages: Sequence[PlannedStage]) -> Iterator[str]:
    """What the models write, and where the targets of the memory come from."""
    replay = recipe.replay
    if replay is not None and replay.generate is not None:
        section = replay.generate
        yield (
            f"generate: {section.tokens:,} tokens of self-generated text "
            + ("in all, in equal parts by every model" if section.keeps_all else "by the previous model in every stage")
            + f"; {DECODING:g} times as long a FLOP as training"
        )
        for stage in stages:
            if stage.generated_tokens:
                yield (
                    f"stage {stage.index}: the model before it writes {stage.generated_tokens:,} tokens, "
                    f"{stage.generation_flops / 1e15:.3g} PFLOPs beside those of the table"
                )
    if not needs_targets(recipe):
        return
    for index in range(len(recipe.stages)):
        kept, generated = planned_memory(recipe, index)
        if (index == 0 and recipe.model.checkpoint is None) or not (kept or generated):
            continue
        visited, found = planned_visits(recipe, index), []
        if generated:
            found.append(
                f"self-generated text is read {visited.generated:.2g} times, its targets are kept while it is written"
            )
        if kept:
            choice = "targets are written once" if visited.stores_kept else "the previous model teaches it online"
            reason = "cheaper than a teacher at every visit" if visited.stores_kept else "no dearer than writing them"
            found.append(f"kept text is read {visited.kept:.2g} times while it is taught: {choice}, {reason}")
        yield f"stage {index}: {'; '.join(found)}"


__all__ = ["InputError", "PlannedStage", "RunPlan", "plan_recipe", "stage_arguments", "taught_share"]
