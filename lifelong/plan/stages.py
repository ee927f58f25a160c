"""A dry run: what every stage will be and cost, from configurations alone; no weights are loaded.

Memory and time on a cluster are not estimated here; what is printed is exact arithmetic on the recipe.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from lifelong.checkpoint import load_config
from lifelong.context import meta_model
from lifelong.expand import model_shape, plan_expansion
from lifelong.initial import fresh_config
from lifelong.learning_rates import stage_curve
from lifelong.pipeline import check_recipe
from lifelong.recipe import InheritSection, Recipe
from lifelong.stream.domain import load_domain
from lifelong.stream.mixing import stage_plan
from lifelong.train.arguments import DEFAULTS, blocks_per_step, training_arguments
from lifelong.train.compute import forward_flops_per_token, num_parameters, training_flops_per_token
from lifelong.train.method import make_methods
from lifelong.train.schedule import sparkline

OF_THE_DEVICE = ("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "torch_compile")
"""TrainingArguments asks for the device that these need; a plan is made on any machine."""
BYTES_PER_PARAMETER = 16  # float32 weight, gradient and two Adam moments


@dataclass(frozen=True)
class PlannedStage:
    """One stage before it is run. FLOPs include those of teacher and methods; bytes are of weights, gradients, moments.

    `learning_rates` are taken in the middle of equal parts of the stage.
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
    training_state_bytes: int
    checkpoint_bytes: int


@dataclass(frozen=True)
class RunPlan:
    """The stages of a recipe and what looks unwise in it."""

    name: str
    stages: tuple[PlannedStage, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def plan_recipe(recipe: Recipe) -> RunPlan:
    """Plan a run.

    Raises:
        InputError: everything that `run` would refuse about recipe, cards and growth.
    """
    check_recipe(recipe)
    if recipe.model.checkpoint is not None:
        config = load_config(recipe.model.checkpoint, recipe.model.revision)
    else:
        config = fresh_config(recipe, vocab_size=recipe.tokenizer_size or 512)
    stages = []
    for index, section in enumerate(recipe.stages):
        before = config
        if section.expand is not None:
            config = plan_expansion(config, **section.expand.options(), **section.expand.sizes()).target_config
        stages.append(_planned(recipe, index, before, config))
    return RunPlan(recipe.name, tuple(stages), tuple(_warnings(recipe, stages)))


def _planned(recipe: Recipe, index: int, before: Any, config: Any) -> PlannedStage:
    section, length, objective = recipe.stages[index], recipe.sequence_length, recipe.objective
    train = {key: value for key, value in {**recipe.train, **section.train}.items() if key not in OF_THE_DEVICE}
    arguments = training_arguments(train, output_dir=Path("unused"), max_steps=1, seed=0)
    plan = stage_plan(section.tokens, length, blocks_per_step(arguments))
    recover = recipe.recover.tokens if recipe.recover and section.expand and index else 0
    model = meta_model(config, objective)
    teacher_tokens = 0.0
    if recipe.inherit is not None and (index or recipe.model.checkpoint or recipe.inherit.teacher.model != "previous"):
        teacher_tokens = plan.tokens * taught_share(recipe.inherit)
    teacher = recipe.inherit.teacher.model if recipe.inherit is not None else None
    teacher_config = before if teacher in (None, "previous") else load_config(str(teacher))
    teacher_flops = teacher_tokens * forward_flops_per_token(meta_model(teacher_config, objective), length, objective)
    parameters = num_parameters(model)
    trained = plan.tokens + (stage_plan(recover, length, plan.blocks_per_step).tokens if recover else 0)
    return PlannedStage(
        index=index,
        domain=load_domain(section.domain).name,
        shape=model_shape(config),
        parameters=parameters,
        tokens=trained,
        steps=trained // plan.tokens_per_step,
        replay_share=recipe.replay.share if recipe.replay and index else 0.0,
        peak_learning_rate=float(arguments.learning_rate),
        warmup_steps=_warmup_steps(recipe, index, arguments, plan.num_steps),
        learning_rates=tuple(stage_curve(recipe, index, arguments, plan.num_steps)),
        flops=(trained + _method_tokens(recipe, index, plan.num_steps))
        * training_flops_per_token(model, length, objective)
        + teacher_flops,
        teacher_flops=teacher_flops,
        training_state_bytes=parameters * BYTES_PER_PARAMETER,
        checkpoint_bytes=parameters * 4,
    )


def _method_tokens(recipe: Recipe, index: int, num_steps: int) -> float:
    """Tokens that the methods pass forward and backward beside training."""
    earlier = len({section.domain for section in recipe.stages[:index]})
    methods = make_methods([(method.name, method.settings()) for method in recipe.methods])
    return sum(method.planned_tokens(num_steps, recipe.sequence_length, earlier) for method in methods)


def _warmup_steps(recipe: Recipe, index: int, arguments: Any, num_steps: int) -> int:
    if recipe.lr is None:
        return int(arguments.get_warmup_steps(num_steps))
    warms = recipe.lr.policy not in ("continue", "infinite") or index == 0
    return round(recipe.lr.warmup * num_steps) if warms else 0


def taught_share(inherit: InheritSection) -> float:
    """Share of a stage's tokens on which the teacher runs, where all tokens are taught."""
    if inherit.alpha == 0:
        return 0.0
    if all(leaf.cache for leaf in inherit.teacher.leaves()):
        return 0.0
    span = 1.0 if inherit.schedule == "constant" else inherit.last_progress
    if not inherit.bernoulli:
        return span
    mean = {"linear": 0.5, "cosine": 0.5, "step": 1.0, "constant": 1.0}[inherit.schedule]
    return span * mean * inherit.alpha


def _warnings(recipe: Recipe, stages: list[PlannedStage]) -> list[str]:
    warnings = []
    if len(stages) > 1 and not (recipe.replay and recipe.replay.share and recipe.replay.memory_tokens):
        warnings.append("no replay: earlier domains will be forgotten; see `replay:`")
    for stage in stages:
        if stage.warmup_steps > 0.1 * stage.steps:
            warnings.append(
                f"stage {stage.index}: the warm-up of {stage.warmup_steps} steps is longer than a tenth of it"
            )
        if stage.steps < 20:
            warnings.append(
                f"stage {stage.index}: only {stage.steps} optimizer steps; give it more tokens or smaller batches"
            )
    if recipe.model.checkpoint and stages[0].peak_learning_rate >= DEFAULTS["learning_rate"]:
        warnings.append(
            f"learning rate {stages[0].peak_learning_rate:g}: high for a model that is pre-trained already; "
            "re-warming to the rate it ended its own training with forgets less"
        )
    return warnings


def plan_table(plan: RunPlan) -> Table:
    """The plan for a terminal of 80 columns."""
    table = Table(title=f"{plan.name}: plan", caption="\n".join(f"! {text}" for text in plan.warnings) or None)
    for heading in ("stage", "domain", "L/d/heads", "params", "tokens", "steps", "replay", "PFLOPs"):
        table.add_column(heading, justify="left" if heading in ("stage", "domain") else "right")
    for stage in plan.stages:
        shape = stage.shape
        table.add_row(
            str(stage.index), stage.domain, f"{shape['layers']}/{shape['hidden_size']}/{shape['heads']}",
            f"{stage.parameters / 1e6:.2f}M", f"{stage.tokens / 1e6:.2f}M", str(stage.steps),
            f"{stage.replay_share:.0%}", f"{stage.flops / 1e15:.3g}",
        )  # fmt: skip
    table.add_row(
        "all", "", "", "", f"{sum(s.tokens for s in plan.stages) / 1e6:.2f}M",
        str(sum(s.steps for s in plan.stages)), "", f"{sum(s.flops for s in plan.stages) / 1e15:.3g}",
    )  # fmt: skip
    return table


def rates_table(plan: RunPlan) -> Table:
    """Learning rate and memory of every stage, for a terminal of 80 columns; all curves on one scale."""
    table = Table(title="learning rate over each stage, and memory of weights, gradients and moments in float32")
    for heading in ("stage", "peak", "start", "end", "curve", "train GB", "saved GB"):
        table.add_column(heading, justify="left" if heading in ("stage", "curve") else "right")
    top = max((rate for stage in plan.stages for rate in stage.learning_rates), default=1.0)
    for stage in plan.stages:
        rates = list(stage.learning_rates)
        shown = [f"{max(rates):.1e}", f"{rates[0]:.1e}", f"{rates[-1]:.1e}"] if rates else ["", "", ""]
        table.add_row(
            str(stage.index), *shown, sparkline(rates, top),
            f"{stage.training_state_bytes / 1e9:.3g}", f"{stage.checkpoint_bytes / 1e9:.3g}",
        )  # fmt: skip
    return table
