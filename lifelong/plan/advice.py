"""Warnings about a recipe, before a machine is rented for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lifelong.errors import InputError
from lifelong.evaluate.chat import has_template
from lifelong.ledger.folder import parse_stage_model
from lifelong.methods._make import make_methods
from lifelong.plan.shapes import Shapes
from lifelong.recipe.files import load_recipe, read_recipe_file
from lifelong.recipe.recipe import NOTHING_WATCHED, Recipe
from lifelong.records import UNPROTECTED_CHAT
from lifelong.train.arguments import DEFAULTS

LONGEST_WARMUP = 0.1
FEWEST_STEPS = 20
MOST_ANCHORS = 4


def warnings_of(recipe: Recipe, stages: Sequence[Any], shapes: Shapes) -> list[str]:
    """One line for everything that looks unwise about replay, schedule and learning rates.

    Args:
        recipe: to judge.
        stages: as planned.
        shapes: knows which runs are still to come.
    """
    warnings = [NOTHING_WATCHED] * recipe.watches_nothing
    several = len({stage.domain for stage in stages}) > 1
    joint = all(section.together_with for section in recipe.stages)
    remembers = recipe.replay and (recipe.replay.memory_tokens or recipe.replay.generate)
    if several and not joint and not (remembers and _replays(recipe)):
        warnings.append("no replay: earlier domains will be forgotten; see `replay:`")
    source = recipe.chat_checkpoint
    if source is not None and not recipe.protects_behaviour and has_template(source, recipe.revision_of(source)):
        warnings.append(UNPROTECTED_CHAT)
    for stage in stages:
        if stage.warmup_steps > LONGEST_WARMUP * stage.steps:
            warnings.append(
                f"stage {stage.index}: the warm-up of {stage.warmup_steps} steps is longer than a tenth of it"
            )
        if stage.steps < FEWEST_STEPS:
            warnings.append(
                f"stage {stage.index}: only {stage.steps} optimizer steps; give it more tokens or smaller batches"
            )
    return warnings + _anchors(recipe, stages) + _rates(recipe, stages, shapes)


def _anchors(recipe: Recipe, stages: Sequence[Any]) -> list[str]:
    """Methods that keep an anchor of every stage: memory and time of a step grow with the stream."""
    copies = 2 * (len(stages) - 1)
    return [
        f"methods.{section.name}: keeps an anchor of every stage, {copies} copies of the parameters in the last one; "
        "`mode: online` keeps one anchor for all (Schwarz et al. 2018, arXiv 1805.06370)"
        for section in recipe.methods
        for method in make_methods([(section.name, section.settings())])
        if getattr(method, "mode", None) == "separate" and len(stages) > MOST_ANCHORS
    ]


def _replays(recipe: Recipe) -> bool:
    """Whether the memory is used: for training, or by a method that needs it."""
    methods = make_methods([(method.name, method.settings()) for method in recipe.methods])
    return bool((recipe.replay and recipe.replay.share) or any(method.needs_memory for method in methods))


def _rates(recipe: Recipe, stages: Sequence[Any], shapes: Shapes) -> list[str]:
    warnings = []
    first = stages[0].peak_learning_rate
    base = base_rate(recipe, shapes) if recipe.model.checkpoint else None
    if base is not None and first > base:
        warnings.append(
            f"learning rate {first:g}: above the {base:g} at which its base was trained; re-warming beyond the old "
            "peak forgets more"
        )
    elif recipe.model.checkpoint and base is None and first >= DEFAULTS["learning_rate"]:
        warnings.append(
            f"learning rate {first:g}: high for a model that is pre-trained already; "
            "re-warming to the rate it ended its own training with forgets less"
        )
    for before, stage in pairwise(stages):
        if stage.peak_learning_rate > before.peak_learning_rate:
            warnings.append(
                f"stage {stage.index}: the learning rate {stage.peak_learning_rate:g} is above the "
                f"{before.peak_learning_rate:g} of the previous stage"
            )
    return warnings


def base_rate(recipe: Recipe, shapes: Shapes) -> float | None:
    """Peak learning rate of the stage that the recipe's checkpoint is, where its run or its recipe can be read."""
    source = str(recipe.model.checkpoint)
    if (named := parse_stage_model(source)) is None:
        return None
    try:
        if source in shapes.coming:
            writer = load_recipe(shapes.coming[source])
        else:
            writer = read_recipe_file(Path(source).parents[2])
    except (InputError, OSError):
        return None
    _, index = named
    if index >= len(writer.stages):
        return None
    return float({**DEFAULTS, **writer.train, **writer.stages[index].train}["learning_rate"])
