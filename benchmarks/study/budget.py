"""Equal training FLOPs: how many tokens a stage each arm may have.

Counted is what training costs: steps, recovery, the teacher's passes, the passes of methods, the probes that steer a
mix. The evaluation that fills the loss matrix is measurement and the same for all, so it is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from benchmarks.study.arms import RECIPES, Arm
from lifelong.inherit.teachers.by_domain import Plugin as ByDomain
from lifelong.lm.checkpoint import load_config, meta_model
from lifelong.lm.flops import forward_flops_per_token
from lifelong.plan import PlannedStage, plan_recipe, taught_share
from lifelong.recipe import Recipe, load_recipe, parse_recipe
from lifelong.replay.steering import PROBING_COST
from lifelong.stream.tokenizers.load import load_tokenizer


def arm_recipe(arm: Arm, tokens: int, seed: int, changes: Sequence[str] = ()) -> Recipe:
    """The recipe of an arm with so many tokens in every stage whose tokens no change has fixed."""
    path = RECIPES / f"{arm.recipe}.yaml"
    fixed = {change.partition("=")[0] for change in (*changes, *arm.changes)}
    keys = [f"stages.{index}.tokens" for index in range(len(load_recipe(path, changes).stages))]
    sizes = [f"{key}={tokens}" for key in keys if key not in fixed]
    return load_recipe(path, [*changes, *arm.changes, *sizes, f"seed={seed}"])


def planned_flops(recipe: Recipe) -> float:
    """FLOPs of training that a recipe will take; probes that steer are counted at the share they are allowed."""
    if recipe.tokenizer is not None and recipe.tokenizer.checkpoint is not None:
        size = len(load_tokenizer(recipe.tokenizer.checkpoint))
        recipe = parse_recipe({**recipe.to_plain(), "tokenizer": {"train": {"vocab_size": size}}})
    steered = bool(recipe.replay and recipe.replay.share and recipe.replay_mix in ("adaptive", "budget"))
    total = 0.0
    for stage in plan_recipe(recipe).stages:
        flops = stage.flops - stage.teacher_flops + taught_flops(recipe, stage) + stage.generation_flops
        total += flops * (1 + (PROBING_COST if steered and stage.index else 0))
    return total


def taught_flops(recipe: Recipe, stage: PlannedStage) -> float:
    """FLOPs of the teacher's passes: it runs on the rows that are taught, and a domain's teacher on its domain's."""
    if recipe.inherit is None:
        return 0.0
    if not recipe.inherit.teacher.models():  # targets that are stored: what is planned is what making them costs
        return stage.teacher_flops
    taught = {"all": 1.0, "replay": stage.replay_share, "new": 1 - stage.replay_share}[recipe.inherit.on]
    if not isinstance(recipe.inherit.teacher, ByDomain):
        return stage.teacher_flops * taught
    routes = recipe.inherit.teacher.routes([])
    source = next((model for model, domains in routes if stage.domain in domains), None)
    if source is None:
        return 0.0
    model = meta_model(load_config(source), recipe.objective)
    per_token = forward_flops_per_token(model, recipe.sequence_length, recipe.objective)
    return stage.tokens * taught * taught_share(recipe.inherit) * per_token


def tokens_at(arm: Arm, budget: float, start: int, changes: Sequence[str] = ()) -> int:
    """Tokens a stage at which an arm takes `budget` FLOPs, to the nearest optimizer step."""
    step = arm_recipe(arm, start, 0, changes)
    per_step = step.sequence_length * int(step.train.get("per_device_train_batch_size", 8))
    low, high = 1, 4 * start // per_step
    while low < high:
        middle = (low + high) // 2
        if planned_flops(arm_recipe(arm, middle * per_step, 0, changes)) < budget:
            low = middle + 1
        else:
            high = middle
    below, above = (planned_flops(arm_recipe(arm, steps * per_step, 0, changes)) for steps in (low - 1 or 1, low))
    return (low if above - budget <= budget - below else low - 1) * per_step


def training_flops(cost: Mapping[str, Mapping[str, Any]], measured: Collection[str] = ("evaluate",)) -> float:
    """What of a committed stage's cost counts against the budget: all phases but those that only measure."""
    return sum(float(phase["flops"]) for name, phase in cost.items() if name not in measured)
