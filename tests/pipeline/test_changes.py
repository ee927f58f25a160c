"""What a run folder binds: everything that changes figures, and nothing else; no trained step is lost."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from lifelong.errors import InputError
from lifelong.ledger.ledger import check_run, read_records
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from lifelong.recipe.changes import BATCH, FREE
from lifelong.records import RunObserver
from tests.support import Dies, recipe_data


def data_of(cards, train=None, stage_train=None, **changes):
    data = recipe_data(cards, inherit=None, replay=None, **changes)
    data["stages"] = [{"domain": str(cards / "sea.yaml"), "tokens": 2000, "train": stage_train or {}}]
    data["model"] = {"family": "llama", "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 24}
    data["tokenizer"] = {"train": {"kind": "bpe", "vocab_size": 304}}
    data["train"] = {**data["train"], "save_steps": 2, **(train or {})}
    return {key: value for key, value in data.items() if value is not None}


class Steps(RunObserver):
    def __init__(self):
        self.seen = []

    def stepped(self, point):
        self.seen.append(point.step)


def weights(out):
    return load_file(out / "stages/00-sea/model/model.safetensors")


@pytest.fixture(scope="module")
def whole(cards, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    run_recipe(parse_recipe(data_of(cards)), out)
    return weights(out)


def killed(cards, out):
    """A run that dies in the middle of its stage."""
    with pytest.raises(ZeroDivisionError):
        run_recipe(parse_recipe(data_of(cards)), out, Dies(0, 6))


@pytest.mark.parametrize(("train", "exact"), [
    ({"gradient_checkpointing": True, "report_to": "tensorboard", "save_steps": 3, "save_total_limit": 1}, True),
    ({"dataloader_num_workers": 1, "dataloader_prefetch_factor": 4, "use_cpu": False, "log_level": "error"}, True),
    ({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, False),
])  # fmt: skip
def test_what_changes_no_figure_changes_in_the_middle_of_a_stage(train, exact, cards, whole, tmp_path):
    pytest.importorskip("tensorboard") if "report_to" in train else None
    killed(cards, tmp_path / "run")
    observer = Steps()
    run_recipe(parse_recipe(data_of(cards, train)), tmp_path / "run", observer)
    assert min(observer.seen) > 2, "the trained steps are lost"
    for name, value in weights(tmp_path / "run").items():
        assert torch.equal(value, whole[name]) if exact else torch.allclose(value, whole[name], atol=1e-5), name
    assert check_run(tmp_path / "run") == []
    # nothing is left to train: any of it may be written differently
    run_recipe(parse_recipe(data_of(cards, {"save_steps": 5})), tmp_path / "run")
    assert check_run(tmp_path / "run") == []


def test_a_stage_of_its_own_batch_keeps_its_step(cards, whole, tmp_path):
    killed(cards, tmp_path / "run")
    observer = Steps()
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    run_recipe(parse_recipe(data_of(cards, stage_train=split)), tmp_path / "run", observer)
    assert min(observer.seen) > 2
    assert all(torch.allclose(value, whole[name], atol=1e-5) for name, value in weights(tmp_path / "run").items())


def test_before_the_first_commit_everything_may_change(cards, tmp_path):
    killed(cards, tmp_path / "run")
    changed = data_of(cards, {"learning_rate": 1e-3}, sequence_length=16, seed=5, name="other")
    changed["tokenizer"] = {"train": {"kind": "bpe", "vocab_size": 310}}
    with pytest.raises(InputError, match="learning_rat: is not"):
        run_recipe(parse_recipe(data_of(cards, {"learning_rat": 1e-3}, seed=5)), tmp_path / "run")
    assert [record.index for record in read_records(tmp_path / "run")] == [-1], "nothing is lost by a refusal"
    run_recipe(parse_recipe(changed), tmp_path / "run")
    run_recipe(parse_recipe(changed), tmp_path / "fresh")
    assert all(torch.equal(value, weights(tmp_path / "fresh")[k]) for k, value in weights(tmp_path / "run").items())
    assert check_run(tmp_path / "run") == []


@pytest.fixture(scope="module")
def in_second_stage(cards, tmp_path_factory):
    """A run that died in the middle of its second stage, and its recipe."""
    data = data_of(cards)
    data["stages"] = [*data["stages"], {"domain": str(cards / "farm.yaml"), "tokens": 2000}]
    out = tmp_path_factory.mktemp("second") / "run"
    with pytest.raises(ZeroDivisionError):
        run_recipe(parse_recipe(data), out, Dies(1, 4))
    return out, data


@pytest.mark.parametrize(("train", "changes", "named"), [
    ({"learning_rate": 1e-3}, {}, "train.learning_rate"),
    ({"per_device_train_batch_size": 4}, {}, "train.per_device_train_batch_size"),
    ({"logging_steps": 1}, {}, "train.logging_steps"),
    ({"save_steps": 5}, {"seed": 1}, "seed"),
])  # fmt: skip
def test_what_changes_figures_is_refused_by_its_keys_alone(train, changes, named, in_second_stage):
    out, data = in_second_stage
    before = (out / "recipe.yaml").read_bytes(), sorted((out / ".work").rglob("*"))
    with pytest.raises(InputError, match=rf"belongs to another recipe; different: {named}\. "):
        run_recipe(parse_recipe({**data, **changes, "train": {**data["train"], **train}}), out)
    assert before == ((out / "recipe.yaml").read_bytes(), sorted((out / ".work").rglob("*")))


def test_free_keys_are_fields_of_training_arguments():
    from lifelong.train.arguments import check_train_section

    assert check_train_section(dict.fromkeys([*BATCH, *(key for keys in FREE.values() for key in keys)])) == []


def test_a_stage_of_shares_that_was_killed_goes_on_to_the_same_bits(cards, tmp_path):
    data = data_of(cards)
    data["stages"][0]["together_with"] = {str(cards / "farm.yaml"): "30%"}
    with pytest.raises(ZeroDivisionError):
        run_recipe(parse_recipe(data), tmp_path / "run", Dies(0, 6))
    for out in ("run", "whole"):
        run_recipe(parse_recipe(data), tmp_path / out)
    assert all(torch.equal(value, weights(tmp_path / "whole")[k]) for k, value in weights(tmp_path / "run").items())
    history = json.loads((tmp_path / "run/stages/00-sea/history.json").read_text())
    assert history["tokens_by_domain"] == {"sea": 45 * 32, "farm": 19 * 32}


class Notes(RunObserver):
    def __init__(self):
        self.notes = []

    def noted(self, text):
        self.notes.append(text)


def test_steps_that_a_change_drops_are_told(cards, tmp_path):
    killed(cards, tmp_path / "run")
    observer = Notes()
    run_recipe(parse_recipe(data_of(cards, seed=4)), tmp_path / "run", observer)
    assert observer.notes[0] == "the recipe has changed (seed): stage 0 begins again"
