"""What `import lifelong` gives: the names, when they are loaded, and how they take paths."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lifelong
from tests.support import recipe_data, write_domain

NAMES = [
    "CachedTarget", "Domain", "DomainLoss", "ExpansionMap", "ExpansionReport", "InputError", "LifelongError",
    "LossMatrix", "Method", "OnlineTarget", "Recipe", "RunFolder", "RunHistory", "RunObserver", "RunPlan",
    "RunResult", "StageContext", "__version__", "check_run", "evaluate", "expand_checkpoint", "expand_model",
    "explain_expansion", "extend_run", "ki_loss", "load_domain", "load_recipe", "parse_recipe", "plan_recipe",
    "read_run", "run_recipe", "train_only_new",
]  # fmt: skip
HEAVY = ("torch", "numpy", "pydantic", "transformers", "yaml", "typer", "rich")


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_these_are_the_public_names():
    assert sorted(lifelong.__all__) == sorted(NAMES)
    assert {*dir(lifelong), "__version__"} == set(NAMES)
    assert all(getattr(lifelong, name).__doc__ for name in NAMES if name != "__version__")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'run_recipes'"):
        _ = lifelong.run_recipes


@pytest.mark.parametrize("package", ["lifelong", "lifelong.inherit", "lifelong.expand", "lifelong.evaluate"])
def test_importing_a_package_loads_nothing_heavy(package):
    loaded = fresh(f"import sys, {package}; print(*sys.modules)").split()
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize("package", ["lifelong", "lifelong.inherit", "lifelong.expand", "lifelong.pipeline"])
def test_every_exported_name_can_be_imported(package):
    module = importlib.import_module(package)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("code", [
    "from lifelong import evaluate",
    "import lifelong; evaluate = lifelong.evaluate",
    "import lifelong.evaluate.settings; from lifelong import evaluate",
    "import lifelong; lifelong.evaluate; import lifelong.evaluate.settings; evaluate = lifelong.evaluate",
    "from lifelong import evaluate; import lifelong.evaluate.settings; assert lifelong.evaluate is evaluate",
    "import lifelong.evaluate as evaluate",
])  # fmt: skip
def test_evaluate_is_a_call_in_every_order_of_imports(code):
    asked = fresh(f"{code}\ntry: evaluate()\nexcept TypeError as error: print(error)")
    assert "evaluate() missing 1 required positional argument: 'model'" in asked


def test_type_checkers_are_told_that_the_package_is_typed():
    assert (Path(lifelong.__file__).parent / "py.typed").is_file()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of one stage, its recipe as a file, and the cards."""
    place = tmp_path_factory.mktemp("paths")
    for name in ("sea", "farm"):
        write_domain(place, name)
    data = recipe_data(place, replay=None, inherit=None)
    data["stages"] = [{**data["stages"][0], "tokens": 600}]
    data["tokenizer"]["train"]["vocab_size"] = 300
    (place / "tiny.yaml").write_text(json.dumps(data))
    lifelong.run_recipe(place / "tiny.yaml", place / "run")
    return place


MODEL = "run/stages/00-sea/model"
CALLS = {
    "load_recipe": lambda at, _: lifelong.load_recipe(at("tiny.yaml")),
    "load_domain": lambda at, _: lifelong.load_domain(at("sea.yaml")),
    "plan_recipe": lambda at, _: lifelong.plan_recipe(at("tiny.yaml")),
    "run_recipe": lambda at, new: lifelong.run_recipe(at("tiny.yaml"), at(f"run-{new}")),
    "read_run": lambda at, _: lifelong.read_run(at("run")),
    "check_run": lambda at, _: lifelong.check_run(at("run")),
    "evaluate": lambda at, _: lifelong.evaluate(at("run"), [at("sea.yaml")], tokens=100, sequence_length=32),
    "explain_expansion": lambda at, _: lifelong.explain_expansion(at(MODEL), {"layers": 3}),
    "expand_checkpoint": lambda at, new: lifelong.expand_checkpoint(
        at(MODEL), at(f"grown-{new}"), targets={"layers": 3}
    ),
    "extend_run": lambda at, _: lifelong.extend_run(at("run"), at("farm.yaml"), tokens=600),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", [str, Path])
def test_paths_are_texts_or_paths(folder, name, kind):
    assert CALLS[name](lambda place: kind(folder / place), kind.__name__) is not None


def test_every_public_function_that_takes_a_path_is_among_those():
    functions = [name for name in NAMES if inspect.isfunction(getattr(lifelong, name)) or name == "evaluate"]
    takers = {name for name in functions if "Path" in str(inspect.signature(getattr(lifelong, name)))}
    assert takers == set(CALLS)
