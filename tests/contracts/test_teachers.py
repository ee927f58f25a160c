"""Every kind of teacher in the folder, and one that is put in beside them as a single file."""

import json
import subprocess
import sys

import pytest

import lifelong.inherit.teachers
from lifelong.errors import InputError
from lifelong.inherit.settings import TeacherSection, teacher_kinds
from lifelong.inherit.teachers._teacher import Given
from lifelong.pipeline import run_recipe
from lifelong.plan import plan_recipe
from lifelong.plugins import plugin_names
from lifelong.recipe import Recipe, parse_recipe
from tests.support import recipe_data, write_domain

WRITTEN = {
    "model": "a/checkpoint",
    "cache": {"cache": "a/folder", "of": "a/checkpoint"},
    "by_domain": {"by_domain": {"sea": "previous", "farm": {"cache": "a/folder"}}},
    "mixture": {"mixture": [{"teacher": "previous", "weight": 2.0}, {"teacher": "b", "weight": {"sea": 1.0}}]},
    "memory": "memory",
}

UNIFORM = '''
"""`{uniform: K}`: knows nothing; K tokens are as likely as each other."""

from typing import Annotated

from pydantic import Field

from lifelong.inherit.settings import TeacherSection
from lifelong.inherit.teachers._teacher import Teacher


class Plugin(TeacherSection):
    uniform: Annotated[int, Field(ge=1)]
    looks: int | None = Field(default=None, description="says how often `uniform` looks away")

    def check(self, given):
        if given.sequence_length < self.uniform:
            yield "inherit.teacher.uniform: is more than a row"

    def build(self, inputs, domains):
        return UniformTeacher(self.uniform)


class UniformTeacher(Teacher):
    def __init__(self, count):
        self.count = count

    def targets(self, batch):
        import torch

        from lifelong.inherit import CachedTarget

        rows = int((batch["labels"] >= 0).sum())
        ids_NK = torch.arange(self.count).repeat(rows, 1)
        return [CachedTarget(ids_NK, torch.full(ids_NK.shape, 1 / self.count))]
'''


@pytest.fixture
def uniform(tmp_path, monkeypatch):
    """A kind in a file of its own; nothing else is touched."""
    folder = tmp_path / "kinds"
    folder.mkdir()
    (folder / "uniform.py").write_text(UNIFORM.lstrip())
    monkeypatch.setattr(lifelong.inherit.teachers, "__path__", [*lifelong.inherit.teachers.__path__, str(folder)])
    yield
    sys.modules.pop("lifelong.inherit.teachers.uniform", None)


def test_every_file_is_a_kind():
    kinds = teacher_kinds()
    assert set(kinds) == set(WRITTEN) == {name.replace("-", "_") for name in plugin_names("lifelong.inherit.teachers")}
    for key, kind in kinds.items():
        fields = dict(kind.model_fields)
        assert fields.pop(key).is_required()
        assert all(not field.is_required() and field.description for field in fields.values())


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_kind_is_written_as_it_was_read(kind):
    section = TeacherSection.model_validate(WRITTEN[kind])
    assert isinstance(section, teacher_kinds()[kind])
    assert section.model_dump(mode="json", exclude_none=True) == WRITTEN[kind]
    assert set(section.models()) <= {"previous", "a/checkpoint", "b"}
    assert {model for model, _ in section.routes(["sea"])} == set(section.models()) - {"previous"}
    assert section.flops_per_token({}) == 0.0


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_kind_says_what_is_wrong_before_a_run(kind, tmp_path):
    recipe = parse_recipe({**recipe_data(tmp_path), "inherit": {"teacher": WRITTEN[kind]}})
    given = Given(recipe.inherit.temperature, recipe.inherit.until, ["law"], recipe.objective, recipe.sequence_length)
    assert all(isinstance(fault, str) for fault in recipe.inherit.teacher.check(given))
    assert list(recipe.inherit.teacher.check(given))  # neither the files nor the domains are there


def test_kinds_are_read_without_torch():
    code = (
        "import sys\nfrom lifelong.inherit.settings import InheritSection, teacher_kinds\n"
        "InheritSection(), teacher_kinds()\nprint({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_new_kind_is_one_file(uniform, tmp_path, monkeypatch):
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "tokens"))
    card = str(write_domain(tmp_path, "sea"))
    data = recipe_data(tmp_path, stages=[{"domain": card, "tokens": 1500}], replay=None, evaluate={"tokens": 300})
    data["tokenizer"] = {"train": {"vocab_size": 300}}

    def teaching(teacher):
        return parse_recipe({**data, "inherit": {"teacher": teacher, "alpha": 0.5, "until": 1.0}})

    recipe = teaching({"by_domain": {"sea": {"uniform": 8}}})
    assert parse_recipe(recipe.to_plain()).fingerprint == recipe.fingerprint
    run_recipe(recipe, tmp_path / "run")
    points = json.loads((tmp_path / "run/stages/00-sea/history.json").read_text())["train"]
    assert all(point["kl"] > 0 for point in points)
    planned = plan_recipe(recipe).stages[0]
    assert planned.teacher_flops == planned.memory.teacher == 0
    assert '"uniform"' in json.dumps(Recipe.model_json_schema())
    for teacher, message in (
        ({"uniform": 0}, "inherit.teacher.uniform: input should be greater than or equal to 1"),
        ({"unifrom": 8}, "did you mean 'uniform'"),
        (
            {"uniform": 8, "model": "x"},
            "is one of model, cache, by_domain, mixture, memory and uniform, here: model, uniform",
        ),
        ({"model": "x", "looks": 2}, "`looks` says how often `uniform` looks away; there is no uniform"),
    ):
        with pytest.raises(InputError) as caught:
            teaching(teacher)
        assert message in str(caught.value)
    with pytest.raises(InputError, match="is more than a row"):
        run_recipe(teaching({"uniform": 33}), tmp_path / "none")
