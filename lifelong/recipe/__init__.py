"""The whole experiment in one YAML file."""

from lifelong.recipe.files import load_recipe, parse_recipe
from lifelong.recipe.recipe import Recipe

__all__ = ["Recipe", "load_recipe", "parse_recipe"]
