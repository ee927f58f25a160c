"""Weights over the deltas of all stages, carried to one size."""

import json

import pytest
import torch
import transformers

from lifelong.files import read_sealed
from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import check_run
from lifelong.lineage.search import SearchPoint, search_merge, search_weights, stage_deltas
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from lifelong.recipe.files import read_recipe_file
from tests.support import recipe_data, run_cli, tiny_checkpoint, write_domain

IDS = torch.arange(5, 29)[None]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two stages from a checkpoint; the second grows."""
    folder = tmp_path_factory.mktemp("search")
    for name in ("sea", "farm", "law", "town"):
        write_domain(folder, name, documents=12)
    checkpoint = tiny_checkpoint(folder / "base", folder)
    data = recipe_data(folder, model={"checkpoint": str(checkpoint)}, evaluate={"tokens": 200, "samples": 0})
    data["stages"] = [{**stage, "tokens": 1536} for stage in data["stages"]]
    data |= {"watch": [str(folder / "law.yaml")]}
    for key in ("tokenizer", "replay", "inherit"):
        data.pop(key)
    run_recipe(parse_recipe(data), folder / "run")
    return folder / "run"


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_weights_of_0_are_the_base_and_of_1_the_newest_and_a_prefix_of_1_a_stage(run):
    parts = stage_deltas(run, read_recipe_file(run).to_plain())
    assert parts.stages == ("00-sea", "01-farm")
    model = load(run / "stages/01-farm/model")
    for weights, folder in (((0, 0), run.parent / "base"), ((1, 0), run / "stages/00-sea/model"),
                            ((1, 1), run / "stages/01-farm/model")):  # fmt: skip
        model.load_state_dict(parts.at(weights), strict=False)
        model.tie_weights()
        assert torch.allclose(logits(model), logits(load(folder)), atol=1e-4), weights


def test_the_search_measures_as_the_matrix_does_chooses_and_records(run, tmp_path, monkeypatch, capsys):
    assert run_cli(monkeypatch, "merge", run, "--search", "--evaluations", 9, "--out", tmp_path / "best", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == read_sealed(run / "front/search/search.json")
    assert (run / "front/search/front.png").stat().st_size > 1000
    points, matrix = told["points"], read_history(run).matrix
    assert len(points) == 9
    assert points[0]["weights"] == [1, 1]
    assert points[0]["losses"]["farm"] == pytest.approx(matrix.nats_per_token[1][1], abs=1e-6)
    assert points[0]["losses"]["law"] == pytest.approx(matrix.watched_nats_per_token[1][0], abs=1e-6)
    assert min(point["mean"] for point in points) == next(p["mean"] for p in points if p["weights"] == told["chosen"])
    kept = json.loads((tmp_path / "best/merge.json").read_text())
    assert kept["weights"] == dict(zip(["00-sea", "01-farm"], told["chosen"], strict=True))
    assert load(tmp_path / "best").config.hidden_size == 36
    assert check_run(run) == []
    assert read_history(run).fronts == ()


def test_the_search_finds_the_minimum_of_a_bowl_with_few_evaluations():
    best = (0.4, 1.2, 0.9)

    def measure(weights):
        loss = 2 + sum((w - b) ** 2 for w, b in zip(weights, best, strict=True))
        return SearchPoint(weights, {"all": loss}, -loss, loss)

    points = search_weights(measure, 3, 30)
    assert len(points) <= 30
    assert len({point.weights for point in points}) == len(points)
    assert min(point.mean for point in points) < 2.02
    assert all(0 <= weight <= 1.5 for point in points for weight in point.weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "--weight", "0.5"], "merge --search: weighs all stages"),
        (["--evaluations", "12"], "merge --evaluations: belongs to --search"),
        (["--search", "--evaluations", "5"], "5 are too few for 2 stages; give at least 9"),
    ],
)
def test_what_does_not_go_together_is_refused(run, monkeypatch, capsys, arguments, message):
    assert run_cli(monkeypatch, "merge", run, *arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_is_there_is_not_written_to(run, tmp_path):
    with pytest.raises(Exception, match="already exists"):
        search_merge(run, read_recipe_file(run).to_plain(), tmp_path)
