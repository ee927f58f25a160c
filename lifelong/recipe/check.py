"""What only the libraries and the cards can judge about a recipe, before anything is written: one check per section.

What is wrong with the values of a section alone its settings class says when the recipe is read. What needs a
library, a card or another section stands beside those settings too; here it is given its part of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lifelong.errors import InputError, LifelongError, refusals
from lifelong.evaluate.chat import check_template, template_tokenizer
from lifelong.evaluate.facts.injection import read_facts
from lifelong.expand import plan_expansion
from lifelong.inherit.teachers._teacher import Given
from lifelong.inherit.vocabularies import check_vocabularies
from lifelong.lm.checkpoint import load_config
from lifelong.methods._context import check_methods, uses_sharding
from lifelong.recipe.fresh import fresh_config
from lifelong.recipe.recipe import Recipe
from lifelong.replay.steering import check_budget, check_steering
from lifelong.select.corpus import check_selection
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.tokenizers.check import check_merge
from lifelong.train.arguments import check_processes, check_train_section
from lifelong.train.policies._policy import make_policy


@dataclass(frozen=True)
class CheckContext:
    """A recipe, and what is known of the run that it is for.

    Args:
        recipe: to check.
        start: first stage that is still to come; cards of earlier ones may be gone.
        config: of the model before that stage, where it is not the recipe's first.
    """

    recipe: Recipe
    start: int = 0
    config: Any = None

    @cached_property
    def domains(self) -> list[str] | None:
        """Names of the stages' domains; None where a card cannot be read, which the check of the stages reports."""
        return _names(stage.domain for stage in self.recipe.stages)

    @cached_property
    def joint(self) -> list[list[str]] | None:
        """Names of the domains that each stage is trained on together with; None where a card cannot be read."""
        parts = [_names(stage.together_with) for stage in self.recipe.stages]
        return None if None in parts else [part for part in parts if part is not None]

    @property
    def keeps_pre_decay(self) -> bool:
        """Whether the learning-rate policy keeps weights in the middle of a stage."""
        return self.recipe.lr is not None and make_policy(self.recipe.lr).keeps_trunk


def check_recipe(recipe: Recipe, start: int = 0, config: Any = None) -> None:
    """What only the libraries and the cards can judge; every error at once, before anything is written.

    Args:
        recipe: to check.
        start: first stage that is still to come; cards of earlier ones may be gone.
        config: of the model before that stage, where it is not the recipe's first.

    Raises:
        InputError: one message with a line for every error.
    """
    _refuse(CHECKS, CheckContext(recipe, start, config))


def check_launch(recipe: Recipe) -> None:
    """What the processes of this launch cannot do together; nothing is refused to a single process.

    Raises:
        InputError: one message with a line for every error.
    """
    _refuse(LAUNCH_CHECKS, CheckContext(recipe))


Check = Callable[[CheckContext], Iterable[str]]


def _refuse(checks: Iterable[Check], context: CheckContext) -> None:
    lines = list(dict.fromkeys(line for check in checks for line in _lines(check, context)))
    if lines:
        count = f"{len(lines)} error{'s' * (len(lines) > 1)}"
        raise InputError(f"recipe {context.recipe.name}: {count}\n  " + "\n  ".join(lines))


def _lines(check: Check, context: CheckContext) -> Iterator[str]:
    """An error that a check raises is its last line."""
    try:
        yield from check(context)
    except InputError as error:
        yield str(error)


def _names(cards: Iterable[str]) -> list[str] | None:
    try:
        return [load_domain(card).name for card in cards]
    except InputError:
        return None


def _check_train(context: CheckContext) -> Iterator[str]:
    yield from check_train_section(context.recipe.train)
    for index, stage in enumerate(context.recipe.stages):
        yield from check_train_section(stage.train, f"stages[{index}].train")


def _check_methods(context: CheckContext) -> Iterator[str]:
    recipe = context.recipe
    has_memory = bool(recipe.replay and recipe.replay.memory_tokens)
    return check_methods(recipe.methods, recipe.train, has_memory=has_memory, keeps_pre_decay=context.keeps_pre_decay)


def _check_model_and_growth(context: CheckContext) -> Iterator[str]:
    """Every growth is planned on configurations alone, each from the one before."""
    recipe, start, config = context.recipe, context.start, context.config
    if recipe.model.checkpoint is not None and start == 0:
        config = load_config(recipe.model.checkpoint, recipe.model.revision)
    for index, stage in enumerate(recipe.stages[start:], start):
        if stage.expand is not None:
            config = config or fresh_config(recipe, vocab_size=recipe.tokenizer_size or 512)
            try:
                config = plan_expansion(config, **stage.expand.options(), **stage.expand.sizes()).target_config
            except LifelongError as error:
                yield f"stages[{index}].expand: {error}"
                return


def _check_select(context: CheckContext) -> Iterator[str]:
    for index, stage in enumerate(context.recipe.stages[context.start :], context.start):
        if stage.select is not None:
            has_learned = index > 0 or context.recipe.model.checkpoint is not None
            yield from check_selection(stage.select, f"stages[{index}].select", has_learned=has_learned)


def _check_cards(context: CheckContext) -> Iterator[str]:
    stages = context.recipe.stages[context.start :]
    for card in dict.fromkeys(name for stage in stages for name in (stage.domain, *stage.together_with)):
        yield from refusals(load_domain, card)


def _check_replay(context: CheckContext) -> Iterator[str]:
    recipe = context.recipe
    if recipe.replay is not None:
        yield from check_steering(recipe.replay_mix, [recipe.train, *(stage.train for stage in recipe.stages)])
    if context.start == 0 and context.domains is not None and context.joint is not None:
        yield from check_budget(recipe.budget, [*context.domains, *(name for part in context.joint for name in part)])


def _check_inherit(context: CheckContext) -> Iterator[str]:
    recipe, inherit = context.recipe, context.recipe.inherit
    if inherit is not None and inherit.alpha:
        yield from inherit.teacher.check(
            Given(inherit.temperature, inherit.until, context.domains, recipe.objective, recipe.sequence_length)
        )


def _check_tokenizers(context: CheckContext) -> Iterator[str]:
    """Vocabularies that are merged, and the teachers that read them."""
    recipe, inherit = context.recipe, context.recipe.inherit
    if context.start > 0 or context.domains is None or context.joint is None:
        return
    fingerprints = yield from check_merge(
        recipe.tokenizer, context.domains, context.joint, facts=recipe.facts is not None
    )
    if inherit is not None and inherit.alpha:
        yield from check_vocabularies(inherit, recipe.tokenizer, context.domains, fingerprints)


def _check_facts(context: CheckContext) -> Iterator[str]:
    facts = context.recipe.facts
    if facts is not None and facts.file is not None and context.start <= facts.stage:
        yield from refusals(read_facts, Path(facts.file))


def _check_chat(context: CheckContext) -> Iterator[str]:
    """A chat template is rendered before anything is trained."""
    if (source := context.recipe.chat_checkpoint) is None or context.start > 0:
        return
    if (tokenizer := template_tokenizer(source)) is not None:
        yield from refusals(check_template, tokenizer, _positions(context.recipe))


def _positions(recipe: Recipe) -> int | None:
    config = load_config(recipe.model.checkpoint, recipe.model.revision) if recipe.model.checkpoint else None
    return getattr(config, "max_position_embeddings", None)


def _check_processes(context: CheckContext) -> Iterator[str]:
    for stage in context.recipe.stages:
        yield from refusals(check_processes, {**context.recipe.train, **stage.train})


def _check_sharding(context: CheckContext) -> Iterator[str]:
    recipe = context.recipe
    if not uses_sharding(recipe.train):
        return
    yield from _check_methods(context)
    if recipe.lr is not None and context.keeps_pre_decay:
        yield (
            f"lr.policy: {recipe.lr.policy} keeps whole weights in the middle of a stage, but this launch shards "
            "them (FSDP); choose another policy, for example wsd, or launch without FSDP"
        )


# in the order of their lines
CHECKS: tuple[Check, ...] = (
    _check_train,
    _check_methods,
    _check_model_and_growth,
    _check_select,
    _check_cards,
    _check_replay,
    _check_inherit,
    _check_tokenizers,
    _check_facts,
    _check_chat,
)
LAUNCH_CHECKS: tuple[Check, ...] = (_check_processes, _check_sharding)
