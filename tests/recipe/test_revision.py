"""`model.revision` of a hub checkpoint, by what is asked of transformers."""

from __future__ import annotations

import pytest
import transformers

from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from tests.support import WORDS, recipe_data, tiny_checkpoint, write_domain

HUB, COMMIT = "someone/base", "0123abc"


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A hub id stands for a folder; (what was loaded, its revision) of every call."""
    for name in WORDS:
        write_domain(tmp_path, name)
    folder = tiny_checkpoint(tmp_path / "checkpoint", tmp_path)
    calls: list[tuple[str, str]] = []
    kinds = (transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.AutoConfig)
    for kind in kinds:
        own = kind.from_pretrained

        def loaded(source, *rest, own=own, kind=kind, revision=None, **options):
            if str(source) == HUB:
                calls.append((kind.__name__, revision))
                source = folder
            return own(source, *rest, **options)

        monkeypatch.setattr(kind, "from_pretrained", loaded)
    return tmp_path, calls


def test_it_reaches_model_tokenizer_configuration_and_previous_teacher(asked):
    folder, calls = asked
    data = recipe_data(folder)
    data.pop("tokenizer")
    stages = [{"domain": str(folder / "sea.yaml"), "tokens": 300}]
    changes = {
        "model": {"checkpoint": HUB, "revision": COMMIT},
        "stages": stages,
        "replay": None,
        "inherit": {"teacher": "previous", "alpha": 0.5},
        "evaluate": {"tokens": 100, "samples": 0, "probes": 0},
    }
    run_recipe(parse_recipe({**data, **changes}), folder / "run")
    assert {revision for _, revision in calls} == {COMMIT}
    models = [name for name, _ in calls if name == "AutoModelForCausalLM"]
    assert len(models) == 2  # the student, and its teacher
    assert {"AutoTokenizer", "AutoConfig"} <= {name for name, _ in calls}
