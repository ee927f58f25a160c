"""What only the libraries and the cards can judge about a recipe, before anything is written: one check per section.

What is wrong with the values of a section alone its settings class says when the recipe is read. What needs a
library, a card or another section stands beside those settings too; here it is given its part of the recipe.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lifelong.errors import ExpansionError, InputError, LifelongError, refusals
from lifelong.evaluate.chat import check_template, template_tokenizer
from lifelong.evaluate.facts.injection import read_facts
from lifelong.expand import model_shape, plan_expansion
from lifelong.expand.settings import ExpandSection
from lifelong.inherit.teachers._teacher import Given
from lifelong.inherit.vocabularies import check_vocabularies
from lifelong.lm.attention import check_attention
from lifelong.lm.checkpoint import load_config, meta_model, stored_dtype
from lifelong.lm.flops import num_parameters
from lifelong.lm.objective import objective_of
from lifelong.methods._context import check_methods, uses_sharding
from lifelong.methods._make import make_methods
from lifelong.methods._method import Method
from lifelong.methods._settings import MethodSection
from lifelong.recipe.fresh import fresh_config
from lifelong.recipe.recipe import WRITES, Recipe
from lifelong.replay.generate import start_ids, stream_shape
from lifelong.replay.settings import SELF_GENERATED
from lifelong.replay.steering import check_budget, check_steering, check_weights
from lifelong.select.corpus import check_selection
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.tokenizers.check import check_merge
from lifelong.stream.tokenizers.load import load_tokenizer, tokenizer_fingerprint
from lifelong.train.arguments import check_processes, check_train_section
from lifelong.train.carried_moments import check_carry
from lifelong.train.optimizer import check_optimizer
from lifelong.train.policies._policy import make_policy
from lifelong.train.rehearsal import (
    OF_THE_DEVICE,
    check_packages,
    check_precision,
    check_trackers,
    check_train_values,
    rehearse_training,
)

OF_THE_MACHINE = (check_trackers, check_packages, check_precision)
REHEARSED_LAYERS = 4
LARGEST_MODEL = 1e13  # parameters; 40 TB


@dataclass(frozen=True)
class CheckContext:
    """A recipe, and what is known of the run that it is for.

    Args:
        recipe: to check.
        start: first stage that is still to come; cards of earlier ones may be gone.
        config: of the model before that stage, where it is not the recipe's first.
        here: the run is to be on this machine, with what it has and what is installed.
    """

    recipe: Recipe
    start: int = 0
    config: Any = None
    here: bool = True

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
        """Whether the next stage starts from weights that are kept beside the released ones."""
        return self.recipe.lr is not None and make_policy(self.recipe.lr).leaves_trunk


def check_recipe(recipe: Recipe, start: int = 0, config: Any = None, *, here: bool = True) -> None:
    """What only the libraries and the cards can judge; every error at once, before anything is written.

    Args:
        recipe: to check.
        start: first stage that is still to come; cards of earlier ones may be gone.
        config: of the model before that stage, where it is not the recipe's first.
        here: the run is to be on this machine; a plan is made on any.

    Raises:
        InputError: one message with a line for every error.
    """
    _refuse(CHECKS, CheckContext(recipe, start, config, here))


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
        recipe, count = context.recipe, f"{len(lines)} error{'s' * (len(lines) > 1)}"
        file = f" ({recipe.origin.path})" if recipe.origin.path else ""
        raise InputError(f"recipe {recipe.name}{file}: {count}\n  " + "\n  ".join(map(recipe.origin.numbered, lines)))


def _lines(check: Check, context: CheckContext) -> Iterator[str]:
    """An error that a check raises is its last line."""
    try:
        yield from check(context)
    except LifelongError as error:
        yield str(error)


def _rehearsed(place: str, rehearse: Callable[..., object], *given: Any) -> Iterator[str]:
    """What a library says against something that it will be asked for in the run: any exception is its answer."""
    try:
        rehearse(*given)
    except LifelongError as error:
        yield f"{place}: {str(error).removeprefix('train: ')}"
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        yield f"{place}: {reason.rsplit('ValueError: ', 1)[-1][:300]}"


def _names(cards: Iterable[str]) -> list[str] | None:
    try:
        return [load_domain(card).name for card in cards]
    except InputError:
        return None


def _check_train(context: CheckContext) -> Iterator[str]:
    recipe, found = context.recipe, False
    sections = {"train": recipe.train}
    sections |= {f"stages[{index}].train": stage.train for index, stage in enumerate(recipe.stages)}
    for where, section in sections.items():
        checks = [check_train_section, check_train_values, *(OF_THE_MACHINE if context.here else [])]
        for line in (line for check in checks for line in check(section, where)):
            found = True
            yield line
    if not found:
        yield from _rehearse_training(context)


def _rehearse_training(context: CheckContext) -> Iterator[str]:
    """Every different section that a stage to come is trained with, once."""
    left_out = () if context.here else (*OF_THE_DEVICE, "report_to")
    different: dict[str, str] = {}
    for index, stage in enumerate(context.recipe.stages[context.start :], context.start):
        section = {key: value for key, value in {**context.recipe.train, **stage.train}.items() if key not in left_out}
        if different.setdefault(json.dumps(section, sort_keys=True, default=str), str(index)) == str(index):
            yield from _rehearsed(f"stages[{index}].train" if stage.train else "train", rehearse_training, section)


def trains_bfloat16(recipe: Recipe, config: Any) -> bool:
    """Whether the weights of a run are held in bfloat16; `config` is of the model that it goes on from."""
    return "bfloat16" in (recipe.model.dtype, recipe.model.dtype == "auto" and stored_dtype(config))


def _check_weights(context: CheckContext) -> Iterator[str]:
    """What weights in bfloat16 cannot be trained with."""
    recipe = context.recipe
    config = context.config
    if config is None and recipe.model.dtype == "auto":
        config = _first_config(recipe)
    if recipe.model.dtype == "auto" and (stored := stored_dtype(config)) not in ("float32", "bfloat16"):
        yield f"model.dtype: the checkpoint is stored in {stored}, which is not trained here; write float32"
    if not trains_bfloat16(recipe, config):
        return
    made = [method for section in recipe.methods for method in _made(section)]
    beside = any(method.exclusive and method.adds_parameters for method in made) and recipe.model.checkpoint is not None
    for index, stage in enumerate(recipe.stages[context.start :], context.start):
        section = {**recipe.train, **stage.train}
        where = f"stages[{index}].train" if stage.train else "train"
        if section.get("fp16"):
            yield f"{where}.fp16: scales gradients, which bfloat16 does not need; take bf16, or model.dtype: float32"
        if not beside:
            yield from check_optimizer(section, where)
        rates = stage.expand.entry_rates if stage.expand is not None else None
        if rates is not None and not {rates.old, rates.new} <= {0, 1}:
            where = f"stages[{index}].expand.rates"
            yield f"{where}: parts of a step are lost in bfloat16; take 0 and 1, or model.dtype: float32"


def _check_methods(context: CheckContext) -> Iterator[str]:
    recipe = context.recipe
    has_memory = bool(recipe.replay and recipe.replay.memory_tokens)
    yield from check_methods(
        recipe.methods,
        recipe.train,
        has_memory=has_memory,
        keeps_pre_decay=context.keeps_pre_decay,
        here=context.here,
    )


def _check_carry(context: CheckContext) -> Iterator[str]:
    """What moments cannot be carried through: sharding, another optimizer, other parameters, another tokenizer."""
    recipe = context.recipe
    if not recipe.carry_optimizer:
        return
    sections = {"train": recipe.train}
    sections |= {f"stages[{index}].train": stage.train for index, stage in enumerate(recipe.stages)}
    named = [(method.name, made) for method in recipe.methods for made in _made(method)]
    yield from check_carry(sections, named, sharded=uses_sharding(recipe.train))
    if recipe.model.checkpoint is None or recipe.tokenizer is None or context.start > 0:
        return
    source = recipe.tokenizer.checkpoint
    own = tokenizer_fingerprint(load_tokenizer(recipe.model.checkpoint, revision=recipe.model.revision))
    if source is None or tokenizer_fingerprint(load_tokenizer(source)) != own:
        yield (
            f"carry_optimizer: the moments of {recipe.model.checkpoint!r} belong to its own tokenizer, and "
            f"`tokenizer:` names {'another' if source is None else repr(source)}, whose ids are other tokens; leave "
            "one of the two out"
        )


def _made(method: MethodSection) -> list[Method]:
    """The method; none where it is wrong, which its own check reports."""
    try:
        return make_methods([(method.name, method.settings())])
    except LifelongError:
        return []


def _check_model_and_growth(context: CheckContext) -> Iterator[str]:
    """Growths, each planned on the configuration of the one before; and every model, built without storage."""
    recipe, start, config = context.recipe, context.start, context.config
    if start == 0:
        config = _first_config(recipe)
        yield from _check_positions(recipe, config)
        yield from (lines := list(_rehearsed("model", _rehearse_model, config, recipe.objective)))
        if lines:
            return
    if recipe.methods:
        model = meta_model(_shallow(config, int(config.num_hidden_layers)), recipe.objective)
        for method in (method for section in recipe.methods for method in _made(section)):
            yield from method.check_model(model)
    if context.here:
        yield from _check_attention(recipe, config, start)
    for index, stage in enumerate(recipe.stages[start:], start):
        if stage.expand is not None:
            before = config
            try:
                _refuse_new_tokens(stage.expand, config)
                config = plan_expansion(config, **stage.expand.options(), **stage.expand.sizes()).target_config
            except LifelongError as error:
                yield f"stages[{index}].expand: {error}"
                return
            yield from _rehearsed(f"stages[{index}].expand", _rehearse_model, config, recipe.objective)
            yield from _rehearsed(f"stages[{index}].expand", _refuse_nothing_new, stage.expand, before, config, recipe)


def _first_config(recipe: Recipe) -> Any:
    if recipe.model.checkpoint is not None:
        return load_config(recipe.model.checkpoint, recipe.model.revision)
    try:
        return fresh_config(recipe, vocab_size=recipe.tokenizer_size or 512)
    except LifelongError as error:
        raise InputError(f"model: {error}") from None


def _check_positions(recipe: Recipe, config: Any) -> Iterator[str]:
    positions, length = getattr(config, "max_position_embeddings", None), recipe.sequence_length
    if isinstance(positions, int) and positions < length:
        of = recipe.model.checkpoint if recipe.model.checkpoint is not None else "model.config"
        yield f"sequence_length: {length} is longer than the {positions} positions of {of!r}"


def _check_attention(recipe: Recipe, config: Any, start: int) -> Iterator[str]:
    sections = [{**recipe.train, **stage.train} for stage in recipe.stages[start:]]
    model = meta_model(_shallow(config, int(config.num_hidden_layers)), recipe.objective)
    half = all(section.get("bf16") or section.get("fp16") for section in sections) or trains_bfloat16(recipe, config)
    causal = objective_of(recipe.objective).is_causal
    yield from check_attention(recipe.model.attn_implementation, model, half=half, causal=causal)


def _refuse_new_tokens(section: ExpandSection, config: Any) -> None:
    """The old tokens share their probability with the new ones, so that no loss can stay what it was."""
    exact = section.mode == "exact" and not section.approximate
    if exact and section.vocab_size is not None and section.vocab_size > model_shape(config)["vocab_size"]:
        raise ExpansionError(
            "vocab_size: new tokens take probability from the old ones, and the tokenizer of a run stays what it is; "
            "grow the checkpoint before the run (lifelong expand), or leave vocab_size out"
        )


def _refuse_nothing_new(section: ExpandSection, before: Any, config: Any, recipe: Recipe) -> None:
    """A stage that trains new entries alone needs some.

    Raises:
        ExpansionError: the growth adds none.
    """
    if section.train == "new":
        old, new = (num_parameters(meta_model(copy.deepcopy(one), recipe.objective)) for one in (before, config))
        if new <= old:
            raise ExpansionError("`train: new` trains what the growth adds, and it adds nothing; name a larger size")


def _rehearse_model(config: Any, objective: str) -> None:
    """Build a model without storage: of its first layers, and all of it only where these alone cannot be built.

    Raises:
        InputError: it has more parameters than any machine has room for.
        Exception: whatever transformers raises.
    """
    layers = int(config.num_hidden_layers)
    try:
        model = meta_model(_shallow(config, layers), objective)
    except Exception:
        model = meta_model(copy.deepcopy(config), objective)
    parameters = sum(weight.numel() for weight in model.parameters()) * max(1, layers / REHEARSED_LAYERS)
    if parameters > LARGEST_MODEL:
        raise InputError(f"some {parameters:.0e} parameters are more than any machine has room for")


def _shallow(config: Any, layers: int) -> Any:
    shallow = copy.deepcopy(config)
    if layers > REHEARSED_LAYERS:
        for key, value in config.to_dict().items():
            if isinstance(value, list) and len(value) == layers:
                setattr(shallow, key, value[:REHEARSED_LAYERS])
        shallow.num_hidden_layers = REHEARSED_LAYERS
    return shallow


def _check_select(context: CheckContext) -> Iterator[str]:
    for index, stage in enumerate(context.recipe.stages[context.start :], context.start):
        if stage.select is not None:
            has_learned = index > 0 or context.recipe.model.checkpoint is not None
            yield from check_selection(stage.select, f"stages[{index}].select", has_learned=has_learned)


def _check_cards(context: CheckContext) -> Iterator[str]:
    recipe, replay = context.recipe, context.recipe.replay
    cards: dict[str, str] = {}  # where each is named first
    for index, stage in enumerate(recipe.stages[context.start :], context.start):
        cards.setdefault(stage.domain, f"stages[{index}].domain")
        for card in stage.together_with:
            key = f".{card}" if stage.shares is not None else ""
            cards.setdefault(card, f"stages[{index}].together_with{key}")
    if replay is not None and replay.generate is not None and replay.generate.start is not None:
        cards.setdefault(replay.generate.start, "replay.generate.start")
    if context.start == 0:
        for card in recipe.watch or ():
            cards.setdefault(card, "watch")
        for card in (replay.proxy or ()) if replay is not None else ():
            cards.setdefault(card, f"replay.proxy.{card}")
    for card, place in cards.items():
        yield from (f"{place}: {line}" for line in refusals(load_domain, card))


def _check_replay(context: CheckContext) -> Iterator[str]:
    recipe = context.recipe
    if recipe.replay is not None:
        yield from check_steering(recipe.replay_mix, [recipe.train, *(stage.train for stage in recipe.stages)])
        if (domains := _replayed_domains(context)) is not None:
            yield from check_weights(recipe.replay, recipe.replay_mix, domains)
        yield from _check_generate(context)
        yield from _check_proxy(context)
    if context.start == 0 and context.domains is not None and context.joint is not None:
        watched = _names(recipe.watch or ()) or ()
        joint = (name for part in context.joint for name in part)
        yield from check_budget(recipe.budget, [*context.domains, *joint, *watched])


def _check_generate(context: CheckContext) -> Iterator[str]:
    """Whether the models of a stream can write, in blocks that hold something."""
    recipe, replay = context.recipe, context.recipe.replay
    if replay is None or replay.generate is None:
        return
    section, where = replay.generate, "replay.generate"
    if recipe.objective not in WRITES:
        yield (
            f"{where}: a masked model fills gaps and writes no text, so that it has nothing to be reminded of; replay "
            "kept text, or public text: replay: {proxy: {CARD: 200k}}"
        )
        return
    if recipe.tokenizer is not None and recipe.tokenizer.merge is not None:
        yield f"{where}: with `tokenizer.merge` every domain has tokens of its own; what a model writes has no domain"
    if SELF_GENERATED in (context.domains or ()):
        yield f"{where}: a domain is named {SELF_GENERATED!r}, as what the models write; give it another name"
    if recipe.model.checkpoint is None and len(recipe.stages) == 1:
        yield f"{where}: the only stage starts from random weights, which have nothing to write; name model.checkpoint"
    config = _first_config(recipe) if context.config is None else context.config
    last = len(recipe.stages) - 1 - (recipe.model.checkpoint is None)
    yield from refusals(stream_shape, section, config, recipe.sequence_length, max(0, last) if section.keeps_all else 0)
    if section.start is not None and section.start_tokens + 1 >= recipe.sequence_length:
        yield (
            f"{where}.start_tokens: {section.start_tokens} leave no room in a block of sequence_length "
            f"{recipe.sequence_length}"
        )
    elif section.start is not None and recipe.tokenizer is None and context.here:
        tokenizer = load_tokenizer(str(recipe.model.checkpoint), revision=recipe.model.revision)
        yield from refusals(start_ids, tokenizer, section, load_domain(section.start), recipe.sequence_length)


def _check_proxy(context: CheckContext) -> Iterator[str]:
    recipe, replay = context.recipe, context.recipe.replay
    for card, tokens in (replay.proxy or {}).items() if replay is not None else ():
        if tokens < recipe.sequence_length:
            yield (
                f"replay.proxy.{card}: {tokens:,} tokens are too few for one block of sequence_length "
                f"{recipe.sequence_length}"
            )
        if recipe.tokenizer is not None and recipe.tokenizer.merge is not None:
            yield f"replay.proxy.{card}: `tokenizer.merge` names no tokenizer for it"


def _replayed_domains(context: CheckContext) -> list[str] | None:
    """Domains of the stages, and what else is replayed: also those that a teacher may be named for."""
    replay = context.recipe.replay
    if context.domains is None or replay is None:
        return context.domains
    proxies = _names(replay.proxy or ()) or []
    return list(dict.fromkeys([*context.domains, *proxies, *([SELF_GENERATED] if replay.generate else [])]))


def _check_inherit(context: CheckContext) -> Iterator[str]:
    recipe, inherit = context.recipe, context.recipe.inherit
    if inherit is not None and inherit.alpha:
        yield from inherit.teacher.check(
            Given(
                inherit.temperature,
                inherit.until,
                _replayed_domains(context),
                recipe.objective,
                recipe.sequence_length,
                inherit.on,
                has_memory=recipe.replay is not None
                and bool(recipe.replay.share and (recipe.replay.memory_tokens or recipe.replay.generate)),
            )
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
    if (tokenizer := template_tokenizer(source, context.recipe.revision_of(source))) is not None:
        yield from refusals(check_template, tokenizer, _positions(context.recipe))


def _positions(recipe: Recipe) -> int | None:
    config = load_config(recipe.model.checkpoint, recipe.model.revision) if recipe.model.checkpoint else None
    return getattr(config, "max_position_embeddings", None)


def _check_processes(context: CheckContext) -> Iterator[str]:
    for stage in context.recipe.stages:
        yield from _rehearsed("train", check_processes, {**context.recipe.train, **stage.train})


def _check_sharding(context: CheckContext) -> Iterator[str]:
    recipe = context.recipe
    if not any(uses_sharding({**recipe.train, **stage.train}) for stage in recipe.stages):
        return
    yield from _check_methods(context)
    yield from _check_carry(context)
    for index, stage in enumerate(recipe.stages):
        if stage.expand is not None and stage.expand.entry_rates is not None:
            yield (
                f"stages[{index}].expand: train and rates hold or scale single entries, but this launch shards whole "
                "parameters (FSDP or ZeRO-3); launch it with plain data parallelism"
            )
    if recipe.lr is not None and context.keeps_pre_decay:
        what = "lr.average" if recipe.lr.average is not None else f"lr.policy: {recipe.lr.policy}"
        yield (
            f"{what} keeps whole weights inside a stage, but this launch shards them (FSDP); choose another policy, "
            "for example wsd without average, or launch without FSDP"
        )


# in the order of their lines
CHECKS: tuple[Check, ...] = (
    _check_train,
    _check_weights,
    _check_methods,
    _check_carry,
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
