"""Commands on recipes: show a shipped one with its base files resolved, or copy it to change it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lifelong.cli.terminal import JsonOption, OverrideOption, SizeOption, say
from lifelong.cli.verbs import HELP, Verbs, add
from lifelong.errors import InputError

recipe_app = typer.Typer(cls=Verbs, no_args_is_help=True, context_settings=HELP, help="Show and copy recipes.")
RecipeArgument = Annotated[str, typer.Argument(help="Name or path of a recipe.")]


def recipe_show(
    recipe: RecipeArgument, size: SizeOption = None, overrides: OverrideOption = None, as_json: JsonOption = False
) -> None:
    """Print a recipe with its base files resolved, as a run would read it."""
    from lifelong.recipe.files import load_recipe, resolved_yaml

    name = f"{size}/{recipe}" if size else recipe
    loaded = load_recipe(name, overrides or ())  # what is wrong with it is said here
    say(json.dumps(loaded.to_plain(), indent=1) if as_json else resolved_yaml(name, overrides or ()), nl=as_json)


def recipe_copy(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="New file, or the folder for one.")] = Path(),
    size: SizeOption = None,
    overrides: OverrideOption = None,
) -> None:
    """Write a recipe with its base files resolved to a file of your own."""
    from lifelong.files import write_text
    from lifelong.recipe.files import load_recipe, resolved_yaml
    from lifelong.recipe.schema import recipe_schema

    name = f"{size}/{recipe}" if size else recipe
    loaded = load_recipe(name, overrides or ())
    path = out if out.suffix in (".yaml", ".yml") else out / f"{loaded.name}.yaml"
    if path.exists():
        raise InputError(f"{str(path)!r} already exists; choose a new file")
    write_text(path, resolved_yaml(name, overrides or ()))
    if not (schema := path.with_name("recipe.schema.json")).exists():  # which the first line of the recipe names
        write_text(schema, json.dumps(recipe_schema(), indent=1) + "\n")
    say(f"recipe: {path}")


add(recipe_app, recipe_show, "recipe show tiny/ewc", "show")
add(recipe_app, recipe_copy, "recipe copy quickstart my-run.yaml", "copy")
