"""From the `lr:` section of a recipe to the learning rate of a stage, and to the weights the next one goes on from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lifelong.files import whole_folder
from lifelong.lm.checkpoint import save_model
from lifelong.recipe.recipe import Recipe
from lifelong.train.phase import Trunk
from lifelong.train.schedule import LrPolicy, StageSpan, level, trunk_step

TRUNK = "trunk"
"""Beside a stage's `model/`: the weights before the annealing, from which the next stage goes on."""


def lr_policy(recipe: Recipe) -> LrPolicy | None:
    """The policy of a recipe; None where every stage follows `train.lr_scheduler_type`."""
    return None if recipe.lr is None else LrPolicy(**recipe.lr.model_dump())


def stage_span(recipe: Recipe, index: int) -> StageSpan:
    """Where a stage lies among the tokens of its stream."""
    tokens = [section.tokens for section in recipe.stages]
    return StageSpan(sum(tokens[:index]), tokens[index], sum(tokens))


def stage_level(recipe: Recipe, index: int) -> Callable[[float], float] | None:
    """Progress of a stage -> learning rate over the peak, where the recipe has a policy."""
    policy, span = lr_policy(recipe), stage_span(recipe, index)
    return None if policy is None else lambda progress: level(policy, span, progress)


def stage_curve(
    recipe: Recipe, index: int, arguments: transformers.TrainingArguments, num_steps: int, points: int = 12
) -> list[float]:
    """Learning rates in the middle of equal parts of a stage, by policy or as transformers schedules it."""
    at = [min(num_steps - 1, int((place + 0.5) / points * num_steps)) for place in range(points)]
    peak = float(arguments.learning_rate)
    if (by_policy := stage_level(recipe, index)) is not None:
        return [peak * by_policy(step / num_steps) for step in at]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler: Any = transformers.get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),
    )
    factors = getattr(scheduler, "lr_lambdas", None)
    return [peak * float(factors[0](step)) for step in at] if factors else []


def stage_trunk(
    recipe: Recipe, num_steps: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, work: Path
) -> Trunk | None:
    """When and how the weights before an annealing are kept; None where the next stage goes on from the end."""
    policy = lr_policy(recipe)
    step = trunk_step(policy, num_steps) if policy is not None else None
    if step is None:
        return None

    def save() -> None:
        if not (work / TRUNK).exists():
            with whole_folder(work / TRUNK) as partial:
                save_model(model, tokenizer, partial)

    return Trunk(step, save)


def keep_trunk(work: Path, folder: Path) -> None:
    """Lay the weights before the annealing, where there are any, beside the stage's model."""
    if (work / TRUNK).exists():
        shutil.copytree(work / TRUNK, folder / TRUNK)
