"""Methods, metrics and families of other distributions, found by their entry points."""

from __future__ import annotations

import json
import sys
from typing import ClassVar

import pytest

from lifelong import InputError, Method, metrics, plugins, run_recipe
from lifelong.cli import main
from lifelong.errors import UnknownNameError
from lifelong.expand.family import family_of, load_family
from lifelong.plugins import load_plugin, plugin_names
from lifelong.recipe import parse_recipe
from tests.support import recipe_data, write_domain

METHOD = """
from dataclasses import dataclass

import torch

from lifelong import Method


@dataclass
class Plugin(Method):
    factor: float = 0.5
    steps = 0

    def edit_gradients(self, model):
        self.steps += 1
        for parameter in model.parameters():
            parameter.grad *= self.factor

    def exports(self):
        return {"steps.safetensors": {"steps": torch.tensor(self.steps)}}
"""
METRIC = """
TITLE, DESCRIPTION, UNIT, LOWER_IS_BETTER = "Best", "the lowest entry of the matrix", "nats/token", True


def compute(matrix):
    return min(value for row in matrix.nats_per_token for value in row if value is not None)
"""
FAMILY = """
from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(name="lama", model_types=("lama",), parameters=gated_decoder(), axes=ROTARY_AXES)
"""
CACHES = (plugins.entry_points_of, metrics._names, metrics._module, metrics.metric_info, load_family)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Make a distribution importable: (name, its entry_points.txt, module="source", ...)."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)

    def make(name, entry_points, **modules):
        info = site / f"{name}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(entry_points)
        for module, source in modules.items():
            (site / f"{module}.py").write_text(source)
        for cached in CACHES:
            cached.cache_clear()

    yield make
    for cached in CACHES:
        cached.cache_clear()
    for module in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


@pytest.fixture
def add_ons(install):
    install(
        "add-ons",
        "[lifelong.methods]\nhalf_steps = their_method\n[lifelong.metrics]\nbest_loss = their_metric\n"
        "[lifelong.families]\nlama = their_family\n",
        their_method=METHOD,
        their_metric=METRIC,
        their_family=FAMILY,
    )


@pytest.mark.parametrize(("what", "name"), [("methods", "half-steps"), ("metrics", "best_loss"), ("families", "lama")])
def test_plugins_of_other_distributions_are_listed(add_ons, monkeypatch, capsys, what, name):
    monkeypatch.setattr(sys, "argv", ["lifelong", "list", what, "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    listed = [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    assert name in listed
    assert listed == sorted(listed)
    assert "their_method" not in sys.modules


def test_a_family_of_another_distribution_is_found_by_its_model_type(add_ons):
    assert family_of("lama").name == "lama"
    assert family_of("llama").name == "llama"


def test_earlier_names_of_the_class_attributes_still_work():
    class Theirs(Method):
        sharded: ClassVar[bool] = True
        alone: ClassVar[bool] = True

    assert Theirs.supports_sharding
    assert Theirs.exclusive
    assert not Method.supports_sharding
    assert not Method.exclusive


def test_a_method_and_a_metric_of_another_distribution_take_part_in_a_run(add_ons, tmp_path):
    from safetensors.torch import load_file

    write_domain(tmp_path, "sea")
    changes = {"replay": None, "inherit": None, "methods": [{"name": "half-steps", "factor": 0.25}]}
    data = recipe_data(tmp_path, **changes, tokenizer={"train": {"kind": "bpe", "vocab_size": 300}})
    data["stages"] = [{**data["stages"][0], "tokens": 600}]
    result = run_recipe(parse_recipe(data), tmp_path / "run")
    assert load_file(tmp_path / "run/stages/00-sea/steps.safetensors")["steps"] > 0
    assert result.metrics["best_loss"] == result.matrix.nats_per_token[0][0]
    assert "best_loss" in json.loads((tmp_path / "run/report/matrix.json").read_text())["metrics"]


def test_settings_of_a_method_from_outside_are_checked_like_any_other(add_ons, tmp_path):
    write_domain(tmp_path, "sea")
    data = recipe_data(tmp_path, methods=[{"name": "half-steps", "facto": 0.25}])
    with pytest.raises(InputError, match="did you mean 'factor'"):
        run_recipe(parse_recipe(data), tmp_path / "run")


@pytest.mark.parametrize("name", ["ewc", "a_gem"])
def test_a_name_of_ours_is_not_taken_over(install, name):
    install("add-ons", f"[lifelong.methods]\n{name} = their_method\n", their_method=METHOD)
    with pytest.raises(InputError, match=r"defined by lifelong itself and by add-ons 1\.5 \(their_method\)"):
        plugin_names("lifelong.methods")


def test_two_distributions_with_one_name_are_both_named(install):
    for name in ("first", "second"):
        install(name, "[lifelong.metrics]\nbest = their_metric\n", their_metric=METRIC)
    with pytest.raises(InputError) as error:
        load_plugin("lifelong.metrics", "bwt", kind="metric")
    assert "first 1.5 (their_metric)" in str(error.value)
    assert "second 1.5 (their_metric)" in str(error.value)


@pytest.mark.parametrize(("source", "message"), [
    ("import not_installed_anywhere", r"cannot be imported: ModuleNotFoundError: No module named 'not_installed"),
    ("1 / 0", r"cannot be imported: ZeroDivisionError"),
    ("", r"is not a method: it does not define Plugin"),
])  # fmt: skip
def test_a_broken_plugin_is_one_message_that_names_its_distribution(install, source, message):
    install("add-ons", "[lifelong.methods]\nbroken = their_broken\n", their_broken=source)
    assert "broken" in plugin_names("lifelong.methods")
    with pytest.raises(InputError, match=rf"method 'broken' of add-ons 1\.5 \(their_broken\) {message}"):
        load_plugin("lifelong.methods", "broken", kind="method")


def test_a_metric_without_a_function_is_refused(install):
    install("add-ons", "[lifelong.metrics]\nempty = their_empty\n", their_empty=METRIC.partition("def ")[0])
    with pytest.raises(InputError, match="is not a metric: it does not define compute or compute_history"):
        load_plugin("lifelong.metrics", "empty", kind="metric")


def test_an_unknown_name_offers_those_from_outside_too(add_ons):
    with pytest.raises(UnknownNameError, match="did you mean 'half-steps'"):
        load_plugin("lifelong.methods", "half-step", kind="method")
