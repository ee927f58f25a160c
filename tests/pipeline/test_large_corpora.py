"""Runs over corpora that are read in pieces: the same bits after a kill, with or without a cache."""

import json
import os
import shutil

import pytest

from lifelong.errors import InputError
from lifelong.ledger.ledger import check_run
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from lifelong.stream import shards
from lifelong.stream.tokenize import default_cache_dir
from tests.pipeline.test_pipeline import comparable
from tests.support import Dies, recipe_data, write_domain

CHANGES = {
    "methods": [{"name": "ewc", "strength": 1.0, "samples": 4}],
    "replay": {"memory_tokens": 1500, "share": 0.25, "policy": "loss-ranked"},
}


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    folder = tmp_path_factory.mktemp("big")
    for name in ("sea", "farm"):
        write_domain(folder, name, documents=200)
    return folder


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch, tmp_path):
    monkeypatch.setattr(shards, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(shards, "PIECE_BYTES", 3000)
    monkeypatch.setattr(shards, "_BLOCKS_A_PIECE", 1)
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def finished(big, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("WHOLE_BYTES", 1000), ("PIECE_BYTES", 3000), ("_BLOCKS_A_PIECE", 1)):
            patch.setattr(shards, name, value)
        patch.setenv("LIFELONG_CACHE", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("runs") / "big"
        run_recipe(parse_recipe(recipe_data(big, **CHANGES)), out)
        made = list(default_cache_dir().rglob("blocks.arrow"))
    assert 4 < len(made) < 60  # in pieces, and not all of them: 2 x 200 documents are some 70
    return out


@pytest.mark.parametrize(("stage", "step", "keeps_cache"), [(0, 8, True), (0, 6, False), (1, 4, True), (1, 12, False)])
def test_a_killed_run_over_shards_goes_on_bit_for_bit(big, finished, tmp_path, monkeypatch, stage, step, keeps_cache):
    recipe = parse_recipe(recipe_data(big, **CHANGES))
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe, tmp_path / "run", Dies(stage, step))
    if not keeps_cache:
        shutil.rmtree(default_cache_dir())
    run_recipe(recipe, tmp_path / "run")
    assert comparable(tmp_path / "run") == comparable(finished)
    assert not check_run(tmp_path / "run")


def test_a_copy_of_the_text_elsewhere_goes_on_and_another_text_does_not(big, tmp_path):
    here = tmp_path / "here"
    shutil.copytree(big, here)
    recipe = parse_recipe(recipe_data(here, **CHANGES))
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe, tmp_path / "run", Dies(0, 4))
    for path in here.glob("*.jsonl"):
        os.utime(path, (1, 1))  # another time
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe, tmp_path / "run", Dies(0, 8))
    with (here / "sea.train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "One more."}) + "\n")
    before = comparable(tmp_path / "run")
    with pytest.raises(InputError, match=r"domain sea: its text has changed .*sea.train.jsonl"):
        run_recipe(recipe, tmp_path / "run")
    assert comparable(tmp_path / "run") == before


def test_loaders_of_other_processes_read_the_same_rows(big, finished, tmp_path):
    data = recipe_data(big, **CHANGES)
    data["train"] = {**data["train"], "dataloader_num_workers": 2}
    run_recipe(parse_recipe(data), tmp_path / "run")
    ours, theirs = comparable(tmp_path / "run"), comparable(finished)
    model = "stages/01-farm/model/model.safetensors"
    assert ours[model] == theirs[model]


def test_shares_of_large_corpora_are_read_in_pieces_too(big, tmp_path):
    data = recipe_data(
        big, stages=[{"domain": str(big / "sea.yaml"), "tokens": 3000, "together_with": {str(big / "farm.yaml"): 0.25}}]
    )
    data.pop("replay")
    data["tokenizer"] = {"train": {"vocab_size": 300}}
    run_recipe(parse_recipe(data), tmp_path / "whole")
    made = len(list(default_cache_dir().rglob("blocks.arrow")))
    assert 1 < made < 40
    with pytest.raises(ZeroDivisionError):
        run_recipe(parse_recipe(data), tmp_path / "run", Dies(0, 6))
    shutil.rmtree(default_cache_dir())
    run_recipe(parse_recipe(data), tmp_path / "run")
    assert comparable(tmp_path / "run") == comparable(tmp_path / "whole")
