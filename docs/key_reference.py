"""The reference of all keys of a recipe and of a domain card, made from their JSON schemas: `docs/reference/*.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lifelong.recipe.schema import recipe_schema
from lifelong.stream.cards.domain import domain_schema

RANGES = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def write_reference(out: Path) -> None:
    """Both pages, as Markdown."""
    out.mkdir(exist_ok=True)
    recipe = recipe_schema()
    sections = {key: value for key, value in recipe["$defs"].items() if not key.startswith("changed.")}
    (out / "recipe_keys.md").write_text(_page("Keys of a recipe", recipe["else"], sections), encoding="utf-8")
    card = domain_schema()
    (out / "card_keys.md").write_text(_page("Keys of a domain card", card, card.get("$defs", {})), encoding="utf-8")


def _page(title: str, schema: dict[str, Any], sections: dict[str, Any]) -> str:
    parts = [f"# {title}", "", "Made from the schema that the reader follows (`lifelong schema recipe | domain`).", ""]
    parts += _section("The file", schema)
    for name, section in sections.items():
        if section.get("properties"):
            parts += _section(name, section)
    return "\n".join(parts) + "\n"


def _section(title: str, schema: dict[str, Any]) -> list[str]:
    rows = [
        f"## {title}",
        "",
        schema.get("description", ""),
        "",
        "| key | value | default | what it is |",
        "|---|---|---|---|",
    ]
    required = schema.get("required", ())
    for key, value in schema.get("properties", {}).items():
        default = (
            "required" if key in required else f"`{value['default']}`" if value.get("default") not in (None, "") else ""
        )
        cells = (f"`{key}`", _kind(value), default, value.get("description", ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*rows, ""]


def _kind(value: dict[str, Any]) -> str:  # noqa: PLR0911 - one answer each
    """The type of a value, with its range, in words."""
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[-1]
        return f"section {name}"
    if "enum" in value:
        return ", ".join(f"`{word}`" for word in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "pattern" in value and value.get("examples"):
        return f"text like `{value['examples'][0]}`"
    if forms := value.get("anyOf") or value.get("oneOf"):
        return " or ".join(dict.fromkeys(_kind(form) for form in forms if form.get("type") != "null"))
    if value.get("type") == "array":
        return f"list of: {_kind(value.get('items', {}))}"
    limits = " ".join(f"{sign} {value[key]:g}" for key, sign in RANGES.items() if key in value)
    return f"{value.get('type', 'any')} {limits}".strip()
