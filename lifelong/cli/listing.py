"""Names that there are, each with a line of what it is; nothing heavy is imported for it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from lifelong.plugins import entry_points_of, plugin_names

PLUGINS = {"families": "lifelong.expand.families", "methods": "lifelong.methods", "metrics": "lifelong.metrics"}


def listed(what: str) -> list[tuple[str, str]]:
    """Name and description of everything of a kind."""
    if what == "domains":
        from lifelong.stream.cards.domain import known_cards

        return [(name, _described(path)) for name, path in sorted(known_cards().items())]
    if what == "tasks":
        from lifelong.evaluate.task import known_tasks, task_file

        return [(name, _described(task_file(name))) for name in known_tasks()]
    if what == "recipes":
        from lifelong.recipe.files import find_recipe, known_recipes

        return [(name, _described(find_recipe(name))) for name in known_recipes()]
    return [(name.replace("-", "_") if what == "metrics" else name, text) for name, text in _plugins(PLUGINS[what])]


def _plugins(package: str) -> Iterable[tuple[str, str]]:
    foreign = entry_points_of(package)
    for name in plugin_names(package):
        if entry := foreign.get(name):
            yield name, f"from {entry.value}"
            continue
        spec = importlib.util.find_spec(f"{package}.{name.replace('-', '_')}")
        path = Path(spec.origin) if spec and spec.origin else None
        yield name, _summary(path) if path else ""


def _summary(path: Path) -> str:
    """First sentence of a module's docstring, read and not run."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def _described(path: Path) -> str:
    """The description of a card or a recipe; of a card without one, its licence."""
    from lifelong.schema import GLANCE_FAULTS, glance

    try:
        data = glance(path)
    except GLANCE_FAULTS:
        return "broken: is not a YAML mapping"
    text = data.get("description") or data.get("licence") or ""
    # written out, a list of lists by aliases may be longer than the memory
    return " ".join(text.split()) if isinstance(text, str) else "broken: its description is not a text"
