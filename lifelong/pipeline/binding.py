"""Binding of a run folder to its recipe, and how the recipe may change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifelong.allowed import remember_allowed
from lifelong.errors import InputError
from lifelong.files import write_sealed, write_text
from lifelong.ledger.ledger import Ledger
from lifelong.lm.checkpoint import load_config
from lifelong.pipeline.environment import environment
from lifelong.recipe.changes import binding_changes, can_amend, keeps_beginning
from lifelong.recipe.check import check_recipe
from lifelong.recipe.files import apply_override, parse_recipe, read_recipe_file
from lifelong.recipe.outside import outside_names
from lifelong.recipe.recipe import Recipe
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.tokenizers.check import same_merge
from lifelong.stream.tokenizers.merged import load_merged


def extended_recipe(ledger: Ledger, domain: str, tokens: str | int | None, overrides: Sequence[str]) -> Recipe:
    """The run's recipe with one more stage; as it is where an earlier call to extend was interrupted."""
    plain = read_recipe_file(ledger.out).to_plain()
    done = len(ledger.stages)
    card = load_domain(domain)
    if len(plain["stages"]) == done and ledger.is_extending and ledger.stages[-1].domain == card.name:
        return read_recipe_file(ledger.out)  # killed after the commit and before the report: nothing more to learn
    if len(plain["stages"]) > done:
        pending = load_domain(plain["stages"][done]["domain"])
        if len(plain["stages"]) > done + 1 or pending.name != card.name:
            raise InputError(
                f"{str(ledger.out)!r} is not finished: stage {done} ({pending.name}) is not committed; "
                "let its own command finish first"
            )
        existing = read_recipe_file(ledger.out)
        if tokens is not None:
            plain["stages"][done]["tokens"] = tokens
        for override in overrides:
            apply_override(plain, override)
        recipe = parse_recipe(plain, where=f"{ledger.folder.recipe} with these changes")
        amend_recipe(ledger, existing, recipe)
        return recipe
    named = str(Path(domain).resolve()) if Path(domain).is_file() else domain
    plain["stages"].append({"domain": named, "tokens": tokens or plain["stages"][-1]["tokens"]})
    for override in overrides:
        apply_override(plain, override)
    recipe = parse_recipe(plain, where=f"{ledger.folder.recipe} with a stage for {card.name}")
    same_merge(recipe.tokenizer, load_merged(ledger.folder.initial.tokenizer))
    check_recipe(recipe, start=done, config=last_config(ledger))
    return recipe


def amend_recipe(ledger: Ledger, existing: Recipe, recipe: Recipe) -> str:
    """Take another recipe for the stages to come, if it is another one and it may be; returns what that has dropped.

    What changes no figure goes into a stage that has begun; after any other change the stage restarts.

    Raises:
        InputError: it says something else about what is committed; names the keys that differ.
    """
    done = len(ledger.stages)
    if existing.fingerprint == recipe.fingerprint:
        return ""
    different = binding_changes(existing, recipe)
    if done == len(recipe.stages) and not different:
        return ""  # nothing is left to train
    if different == ["evaluate.tokens"] and recipe.evaluate.tokens == "auto":
        # what was held out stays: the folder was begun when 100k was the default, or with a figure of its own
        return ""
    if not can_amend(ledger, different):
        raise InputError(
            f"run folder {str(ledger.out)!r} belongs to another recipe; different: {', '.join(different)}. "
            "Choose another --out, or undo the change"
        )
    check_recipe(recipe, start=done, config=last_config(ledger))
    if not different:
        put_in_force(ledger, recipe)
        return ""
    if done or keeps_beginning(existing, recipe, different):
        ledger.clear_work_dir()
        put_in_force(ledger, recipe)
    else:
        ledger.restart()
        write_text(ledger.folder.recipe, recipe.to_yaml())
        remember_allowed(outside_names(recipe))
    return f"the recipe has changed ({', '.join(different)}): stage {done} begins again"


def put_in_force(ledger: Ledger, recipe: Recipe) -> None:
    """Take a recipe for the stages to come; who writes it allows what it names."""
    ledger.replace_recipe(recipe.to_yaml())
    remember_allowed(outside_names(recipe, len(ledger.stages)))


def last_config(ledger: Ledger) -> Any:
    """Configuration of the model of the last committed stage; None before the first, where the recipe says it."""
    return None if not ledger.stages else load_config(ledger.folder.model(ledger.stages[-1].name))


def bind_recipe(ledger: Ledger, recipe: Recipe) -> str:
    """Bind a run folder to its recipe, or to another one that it may change to; returns what that has dropped.

    Raises:
        InputError: the folder belongs to another recipe; names the keys that differ.
    """
    folder = ledger.folder
    if folder.recipe.exists():
        return amend_recipe(ledger, read_recipe_file(folder.path), recipe)
    write_sealed(folder.environment, environment())
    write_text(folder.recipe, recipe.to_yaml())
    remember_allowed(outside_names(recipe))
    return ""
