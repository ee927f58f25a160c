"""What only the libraries and the cards can judge about a recipe, before anything is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lifelong.errors import InputError, LifelongError, UnknownNameError
from lifelong.evaluate.facts.injection import read_facts
from lifelong.expand import plan_expansion
from lifelong.inherit.teachers._teacher import Given
from lifelong.inherit.vocabularies import check_vocabularies
from lifelong.lm.checkpoint import load_config
from lifelong.methods._context import check_methods, is_sharded
from lifelong.recipe.fresh import fresh_config
from lifelong.recipe.recipe import Recipe
from lifelong.replay.steering import check_steering
from lifelong.select.corpus import check_selection
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.tokenizers.check import check_merge
from lifelong.train.arguments import check_processes, check_train_section
from lifelong.train.policies._policy import make_policy


def check_recipe(recipe: Recipe, start: int = 0, config: Any = None) -> None:
    """What only the libraries and the cards can judge; every error at once, before anything is written.

    Args:
        recipe: to check.
        start: first stage that is still to come; cards of earlier ones may be gone.
        config: of the model before that stage, where it is not the recipe's first.

    Raises:
        InputError: one message with a line for every error.
    """
    lines = check_train_section(recipe.train)
    for index, stage in enumerate(recipe.stages):
        lines += check_train_section(stage.train, f"stages[{index}].train")
    with collecting(lines):
        _check_methods(recipe)
    with collecting(lines):
        if recipe.model.checkpoint is not None and start == 0:
            config = load_config(recipe.model.checkpoint, recipe.model.revision)
        check_growth(recipe, start, config)
    for index, stage in enumerate(recipe.stages[start:], start):
        if stage.select is not None:
            learned = index > 0 or recipe.model.checkpoint is not None
            lines += check_selection(stage.select, f"stages[{index}].select", has_learned=learned)
    names = []
    for card in dict.fromkeys(name for stage in recipe.stages[start:] for name in (stage.domain, *stage.together_with)):
        with collecting(lines):
            names.append(load_domain(card).name)
    with collecting(lines):
        _check_replay(recipe, names if start == 0 and not lines else ())
    if recipe.inherit is not None and recipe.inherit.alpha:
        given = Given(recipe.inherit, _stream_names(recipe), recipe.objective, recipe.sequence_length)
        lines += recipe.inherit.teacher.check(given)
    if start == 0:
        _check_tokenizers(recipe, lines)
    with collecting(lines):
        if recipe.facts is not None and recipe.facts.file is not None and start <= recipe.facts.stage:
            read_facts(Path(recipe.facts.file))
    if lines:
        raise InputError(f"recipe {recipe.name}: {len(lines)} error{'s' * (len(lines) > 1)}\n  " + "\n  ".join(lines))


def _check_methods(recipe: Recipe) -> None:
    check_methods(
        recipe.methods,
        recipe.train,
        has_memory=bool(recipe.replay and recipe.replay.memory_tokens),
        keeps_pre_decay=_keeps_pre_decay(recipe),
    )


def _keeps_pre_decay(recipe: Recipe) -> bool:
    """Whether the learning-rate policy keeps weights in the middle of a stage."""
    return recipe.lr is not None and make_policy(recipe.lr).keeps_trunk


def _check_replay(recipe: Recipe, names: Sequence[str]) -> None:
    """Steering, and the budget's domains where all cards have been read."""
    if recipe.replay is not None:
        check_steering(recipe.replay_mix, [recipe.train, *(stage.train for stage in recipe.stages)])
    for domain in recipe.budget if names else ():
        if domain not in names:
            raise UnknownNameError("stage with domain", domain, names, "budget")


def _stream_names(recipe: Recipe) -> list[str] | None:
    try:
        return [load_domain(stage.domain).name for stage in recipe.stages]
    except InputError:
        return None  # reported on its own, or a card that is gone from a stage that is done


def _check_tokenizers(recipe: Recipe, lines: list[str]) -> None:
    """Vocabularies that are merged, and the teachers that read them."""
    names = _stream_names(recipe)
    try:
        joint = [[load_domain(card).name for card in stage.together_with] for stage in recipe.stages]
    except InputError:
        return  # reported on its own
    if names is None:
        return
    fingerprints = check_merge(recipe.tokenizer, names, joint, lines.append, facts=recipe.facts is not None)
    if recipe.inherit is not None and recipe.inherit.alpha:
        lines += check_vocabularies(recipe.inherit, recipe.tokenizer, names, fingerprints)


def check_launch(recipe: Recipe) -> None:
    """What the processes of this launch cannot do together; nothing is refused to a single process.

    Raises:
        InputError: one message with a line for every error.
    """
    lines: list[str] = []
    for stage in recipe.stages:
        with collecting(lines):
            check_processes({**recipe.train, **stage.train})
    if is_sharded(recipe.train):
        with collecting(lines):
            _check_methods(recipe)
        if recipe.lr is not None and _keeps_pre_decay(recipe):
            lines.append(
                f"lr.policy: {recipe.lr.policy} keeps whole weights in the middle of a stage, but this launch shards "
                "them (FSDP); choose another policy, for example wsd, or launch without FSDP"
            )
    if lines:
        raise InputError(f"recipe {recipe.name}: " + "\n  ".join(dict.fromkeys(lines)))


@contextlib.contextmanager
def collecting(lines: list[str]) -> Iterator[None]:
    """Turn an InputError into a line of a longer message."""
    try:
        yield
    except InputError as error:
        lines.append(str(error))


def check_growth(recipe: Recipe, start: int = 0, config: Any = None) -> None:
    """Plan every growth on configurations alone.

    Raises:
        InputError: a target that cannot be reached from the stage before.
    """
    if not any(stage.expand for stage in recipe.stages[start:]):
        return
    if config is None:
        config = fresh_config(recipe, vocab_size=recipe.tokenizer_size or 512)
    for index, stage in enumerate(recipe.stages[start:], start):
        if stage.expand is not None:
            try:
                config = plan_expansion(
                    config,
                    **stage.expand.options(),
                    **stage.expand.sizes(),
                ).target_config
            except LifelongError as error:
                raise InputError(f"stages[{index}].expand: {error}") from None
