"""What a recipe reaches outside of its run folder, and whether somebody here has allowed that.

A run folder may come from somebody else, and `extend` obeys the recipe in it: it loads the teachers, reads the cards
and reports to the trackers that are named there. Who wrote the recipe on this machine, by `run` or `extend`, has
allowed what it names; of another folder the names are listed first (`lifelong.allowed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lifelong.allowed import not_allowed, remember_allowed
from lifelong.errors import InputError
from lifelong.inherit.settings import PREVIOUS
from lifelong.recipe.recipe import Recipe

# TrainingArguments by which a run reads files elsewhere, or tells somebody about itself
REACHING = (
    "accelerator_config", "deepspeed", "fsdp_config", "hub_model_id", "hub_revision", "hub_token",
    "liger_kernel_config", "logging_dir", "parallelism_config", "project", "push_to_hub", "report_to",
    "trackio_bucket_id", "trackio_space_id", "trackio_static_space_id",
)  # fmt: skip


def outside_names(recipe: Recipe, start: int = 0) -> list[str]:
    """What the stages from `start` on reach outside of the run folder, each with its place in the recipe."""
    return [f"{place}: {name}" for place, name in _outside(recipe, start)]


def _outside(recipe: Recipe, start: int) -> Iterator[tuple[str, Any]]:
    teacher = recipe.inherit.teacher if recipe.inherit is not None and recipe.inherit.alpha else None
    for name in (*teacher.models(), *teacher.caches()) if teacher is not None else ():
        if name != PREVIOUS:
            yield "inherit.teacher", name
    if recipe.facts is not None and recipe.facts.file is not None and recipe.facts.stage >= start:
        yield "facts.file", recipe.facts.file
    for method in recipe.methods:
        yield from ((f"methods.{method.name}.{key}", value) for key, value in _paths(method.settings()))
    yield from _reaching(recipe.train, "train")
    yield from _cards_beside(recipe, start)
    for index, stage in enumerate(recipe.stages[start:], start):
        for card in stage.cards:
            if _is_path(card):
                yield f"stages[{index}].domain", card
        for role, source in stage.select.models() if stage.select is not None else ():
            if source != PREVIOUS:
                yield f"stages[{index}].select.{role}", source
        yield from _reaching(stage.train, f"stages[{index}].train")


def _cards_beside(recipe: Recipe, start: int) -> Iterator[tuple[str, Any]]:
    """Paths of cards that no stage learns."""
    replay = recipe.replay
    named = [("watch", card) for card in recipe.watch or ()] if start == 0 else []
    if replay is not None:
        named += [("replay.proxy", card) for card in replay.proxy or ()]
        named += [("replay.generate.start", part.start)] if (part := replay.generate) and part.start else []
    yield from ((place, card) for place, card in named if _is_path(card))


def _is_path(card: str) -> bool:
    return "/" in card or card.endswith((".yaml", ".yml"))


def _paths(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in settings.items() if isinstance(value, str) and "/" in value)


def _reaching(section: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    named = {key: value for key, value in section.items() if key in REACHING and value not in (None, False, "none", [])}
    for key, value in {**named, **dict(_paths(section))}.items():
        yield f"{place}.{key}", value


def require_allowed(recipe: Recipe, start: int, where: str, *, allow: bool) -> None:
    """Refuse a recipe of somebody else that reaches outside of its run folder, unless that is allowed.

    Args:
        recipe: as it stands in the run folder.
        start: first stage that is still to come.
        where: the run folder, for the message.
        allow: the user has seen the names and allows them; that is remembered.

    Raises:
        InputError: lists the names.
    """
    names = outside_names(recipe, start)
    if allow:
        remember_allowed(names)
    elif unknown := not_allowed(names):
        raise InputError(
            f"run folder {where!r}: its recipe was not written on this machine and reaches outside of the folder:\n  "
            + "\n  ".join(unknown)
            + "\n  Nothing of it was read. If you trust these names, run the command again with --allow-paths"
        )
