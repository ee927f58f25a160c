"""Laws that hold for every method file, without naming any."""

import pytest

from lifelong.ledger import read_records
from lifelong.pipeline import run_recipe
from lifelong.plugins import load_plugin, plugin_names
from lifelong.recipe import parse_recipe
from lifelong.train.method import make_methods
from tests.pipeline_runs import recipe_data, write_domain

METHODS = plugin_names("lifelong.methods")


def models(out):
    return [record.fingerprints["model"] for record in read_records(out)]


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    for name in ("sea", "farm"):
        write_domain(folder, name)
    return folder


def run(cards, out, **changes):
    data = {k: v for k, v in recipe_data(cards, inherit=None, replay=None, **changes).items() if v is not None}
    run_recipe(parse_recipe(data), out)
    return models(out)


@pytest.mark.parametrize("name", METHODS)
def test_strength_zero_is_sequential_training_and_strength_one_is_not(name, cards, tmp_path):
    sequential = run(cards, tmp_path / "sequential")
    assert run(cards, tmp_path / "zero", methods=[{"name": name, "strength": 0}]) == sequential
    assert run(cards, tmp_path / "one", methods=[{"name": name, "strength": 1.0}])[-1] != sequential[-1]


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_bits(name, cards, tmp_path):
    first = run(cards, tmp_path / "a", methods=[{"name": name}])
    assert run(cards, tmp_path / "b", methods=[{"name": name}]) == first
    assert run(cards, tmp_path / "c", methods=[{"name": name}], seed=1) != first


@pytest.mark.parametrize("name", METHODS)
def test_its_file_is_a_dataclass_that_can_be_made_from_the_recipe(name):
    (method,) = make_methods([(name, {"strength": 0.5})])
    assert isinstance(method, load_plugin("lifelong.methods", name, kind="method").Plugin)
    assert make_methods([(name, {"strength": 0})]) == []
