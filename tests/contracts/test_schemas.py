"""What the JSON schemas accept is what the readers accept: every shipped recipe and card, and what both refuse."""

from __future__ import annotations

import json

import jsonschema
import pytest
import yaml

from lifelong.errors import InputError
from lifelong.plugins import shipped_folder
from lifelong.recipe import parse_recipe
from lifelong.recipe.schema import recipe_schema
from lifelong.schema import Yaml, read_yaml
from lifelong.stream.cards.domain import domain_schema, read_card

SCHEMA = shipped_folder("recipes") / "recipe.schema.json"
RECIPES = sorted(shipped_folder("recipes").rglob("*.yaml"))
CARDS = sorted(shipped_folder("domains").glob("*.yaml"))
RECIPE, CARD = recipe_schema(), domain_schema()


def faults(schema, data):
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(data)]


def test_the_shipped_schema_is_of_this_version():
    """`lifelong schema recipe > recipes/recipe.schema.json` makes it again."""
    assert json.loads(SCHEMA.read_text()) == RECIPE


def test_the_schemas_are_schemas():
    for schema in (RECIPE, CARD):
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_shipped_recipe_fits_and_names_its_schema(path):
    named = [line.partition("$schema=")[2] for line in path.read_text().splitlines() if "yaml-language-server" in line]
    assert [(path.parent / name).resolve() for name in named] == [SCHEMA.resolve()]
    assert faults(RECIPE, _text_keys(read_yaml(path, Yaml).data)) == []


def _text_keys(node):
    """Keys of YAML may be numbers, those of JSON are texts."""
    if isinstance(node, dict):
        return {str(key): _text_keys(value) for key, value in node.items()}
    return [_text_keys(item) for item in node] if isinstance(node, list) else node


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_every_shipped_card_fits(path):
    assert faults(CARD, yaml.safe_load(path.read_text())) == []
    read_card(path)


WHOLE = {
    "name": "x", "model": {"family": "llama", "layers": 2, "hidden_size": 64, "heads": 2},
    "tokenizer": {"train": {"kind": "bpe", "vocab_size": "4k"}}, "stages": [{"domain": "licences", "tokens": "2M"}],
}  # fmt: skip


@pytest.mark.parametrize(("change", "accepted"), [
    ({}, True),
    ({"budget": {"licences": "2%"}}, True),
    ({"replay": {"memory_tokens": "200k", "share": 0.3}}, True),
    ({"replay": {"share": "30%"}}, True),
    ({"expect": {"ap": {"value": 31.2, "tolerance": "5%"}}}, True),
    ({"inherit": {"teacher": "previous", "until": "30%"}}, True),
    ({"replay": {"memory_tokens": "lots"}}, False),
    ({"replay": {"share": 1.5}}, False),
    ({"stages": []}, False),
    ({"sequence_lenght": 128}, False),
    ({"objective": "rlhf"}, False),
])  # fmt: skip
def test_schema_and_reader_agree(change, accepted):
    data = {**WHOLE, **change}
    assert (faults(RECIPE, data) == []) is accepted
    if accepted:
        parse_recipe(data)
    else:
        with pytest.raises(InputError):
            parse_recipe(data)


def test_every_key_of_a_recipe_is_described():
    properties = RECIPE["else"]["properties"]
    assert [key for key, value in properties.items() if not value.get("description")] == []
