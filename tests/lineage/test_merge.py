"""Between the model before a stage, at the new size, and the trained one."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

from lifelong.errors import CorruptionError, InputError, UnknownNameError
from lifelong.files import read_json, write_sealed
from lifelong.ledger.history import read_history
from lifelong.lineage.front import interpolation_front, parse_weights
from lifelong.lineage.merge import merge_stage
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from lifelong.recipe.files import read_recipe_file
from lifelong.report import write_report
from lifelong.report.html import page
from lifelong.report.tradeoff import tradeoffs
from tests.support import recipe_data, write_domain

IDS = torch.arange(5, 29)[None]


def logits(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two stages; the second grows in width and depth."""
    folder = tmp_path_factory.mktemp("merge")
    for name in ("sea", "farm"):
        write_domain(folder, name)
    run_recipe(parse_recipe(recipe_data(folder, replay=None, inherit=None)), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def recipe(run):
    return read_recipe_file(run).to_plain()


def test_weight_0_computes_what_the_small_model_did_and_weight_1_is_the_trained_one(run, recipe, tmp_path):
    merge_stage(run, recipe, 0.0, tmp_path / "old")
    merge_stage(run, recipe, 1.0, tmp_path / "new")
    small, trained = run / "stages/00-sea/model", run / "stages/01-farm/model"
    assert torch.allclose(logits(tmp_path / "old"), logits(small), atol=1e-5)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "old").hidden_size == 36
    assert torch.equal(logits(tmp_path / "new"), logits(trained))
    assert not torch.allclose(logits(small), logits(trained), atol=0.1)
    assert json.loads((tmp_path / "old/merge.json").read_text())["stage"] == "01-farm"
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "old").vocab_size > 300


def test_half_way_every_weight_is_the_mean_of_both_ends(run, recipe, tmp_path):
    folders = {}
    for weight in (0.0, 0.5, 1.0):
        folders[weight] = tmp_path / str(weight)
        merge_stage(run, recipe, weight, folders[weight])
    states = {w: transformers.AutoModelForCausalLM.from_pretrained(f).state_dict() for w, f in folders.items()}
    for name, value in states[0.5].items():
        assert torch.allclose(value, (states[0.0][name] + states[1.0][name]) / 2, atol=1e-6), name


def test_the_front_ends_where_the_matrix_says_and_the_report_draws_it(run, recipe, tmp_path):
    front = interpolation_front(run, recipe, (0.0, 0.5, 1.0))
    history = read_history(run)
    matrix = history.matrix
    first, last = front.points[0].losses, front.points[-1].losses
    assert first["sea"] == pytest.approx(matrix.nats_per_token[0][0], abs=1e-4)
    assert first["farm"] == pytest.approx(matrix.nats_per_token[0][1], abs=1e-4)
    assert last["sea"] == pytest.approx(matrix.nats_per_token[1][0], abs=1e-6)
    points = tradeoffs(front, matrix)
    assert points[0].forgetting == pytest.approx(0.0, abs=1e-4)
    assert points[0].gain == 0.0
    assert points[-1].gain > points[1].gain > 0.1
    assert points[-1].forgetting == pytest.approx(matrix.nats_per_token[1][0] - matrix.nats_per_token[0][0], abs=1e-6)
    assert history.fronts == (front,)
    write_report(history, tmp_path / "report")
    assert (tmp_path / "report/front.png").is_file()
    assert "Interpolation" in page(history)


def test_a_front_of_other_weights_is_left_out_and_said(run, recipe, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    front = interpolation_front(copy, recipe, (0.0, 1.0))
    path = copy / "front" / f"{front.stage}.json"
    front_of_others = {**read_json(path), "record": "0" * 64}
    del front_of_others["sha256"]
    write_sealed(path, front_of_others)
    history = read_history(copy)
    assert history.fronts == ()
    assert "other weights" in page(history)


@pytest.mark.parametrize(("weight", "stage", "error", "words"), [
    (1.5, None, InputError, "between 0"), (float("nan"), None, InputError, "between 0"),
    (0.5, "02-law", UnknownNameError, "01-farm"), (0.5, "0", InputError, "randomly initialised"),
])  # fmt: skip
def test_bad_input(run, recipe, tmp_path, weight, stage, error, words):
    with pytest.raises(error, match=words):
        merge_stage(run, recipe, weight, tmp_path / "out", stage)
    assert not (tmp_path / "out").exists()


def test_changed_weights_are_not_merged(run, recipe, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    path = copy / "stages/00-sea/model/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptionError, match="differs from what was committed"):
        merge_stage(copy, recipe, 0.5, tmp_path / "out")


def test_weights_on_the_command_line_are_numbers():
    assert parse_weights("0,0.5, 1") == [0.0, 0.5, 1.0]
    with pytest.raises(InputError, match="commas"):
        parse_weights("0;1")
