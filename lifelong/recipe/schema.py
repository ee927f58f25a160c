"""JSON schema of a recipe file, for editors: what the reader accepts, with or without a `base`."""

from __future__ import annotations

import copy
from typing import Any

from lifelong.recipe.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"
CHANGED = "changed."
FILE_KEYS: dict[str, Any] = {
    "base": {"type": "string", "description": "name or path of a recipe that this one changes"},
    "sizes": {"type": "array", "items": {"type": "string"}, "description": "sizes in which the recipe comes"},
}


def recipe_schema() -> dict[str, Any]:
    """A whole recipe; or, where it names a `base`, changes of one: any part, `null` for none, entries by number."""
    whole = Recipe.model_json_schema()
    sections = whole.pop("$defs")
    whole["required"] = [key for key in whole["required"] if key != "name"]  # the file names it
    changes = _changed(whole)
    changes["properties"] |= FILE_KEYS
    changes["required"] = ["base"]
    changed = {f"{CHANGED}{name}": _changed(section) for name, section in sections.items()}
    return {
        "$schema": DIALECT,
        "title": "lifelong recipe",
        "type": "object",
        "properties": {key: {"description": value["description"]} for key, value in whole["properties"].items()},
        "if": {"required": ["base"]},
        "then": changes,
        "else": whole,
        "$defs": {**sections, **changed},
    }


def _changed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of changes of what a schema describes."""
    changes: dict[str, Any] = _renamed(copy.deepcopy(schema))
    changes.pop("required", None)
    for key, value in changes.get("properties", {}).items():
        forms = [value, {"type": "null"}]
        items = value.get("items") or next((part["items"] for part in value.get("anyOf", ()) if "items" in part), None)
        if items is not None:
            forms.append({"type": "object", "patternProperties": {"^[0-9]+$": items}, "additionalProperties": False})
        changes["properties"][key] = {
            "anyOf": forms,
            **({"description": value["description"]} if "description" in value else {}),
        }
    return changes


def _renamed(node: Any) -> Any:
    """All references lead to the changes of a section."""
    if isinstance(node, dict):
        return {
            key: value.replace("#/$defs/", f"#/$defs/{CHANGED}") if key == "$ref" else _renamed(value)
            for key, value in node.items()
        }
    return [_renamed(item) for item in node] if isinstance(node, list) else node
