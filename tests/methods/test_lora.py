"""LoRA's settings, the adapter that peft loads, and the base that is held in less."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from lifelong.errors import InputError
from lifelong.expand import ExpansionMap
from lifelong.files import read_json
from lifelong.lm.checkpoint import cast_weights, load_model
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from tests.support import Dies, recipe_data, tiny_checkpoint
from tests.trajectories.runs import comparable

GROWTH = {"layers": 3, "hidden_size": 36, "heads": 3}
IDS = torch.arange(20).view(2, 10) * 7 % 320


@pytest.fixture(scope="module")
def checkpoint(cards, tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), cards)


def recipe(cards, checkpoint, *domains, expand=None, dtype="float32", **settings):
    data = recipe_data(cards)
    stages = [{"domain": str(cards / f"{name}.yaml"), "tokens": 400} for name in domains]
    if expand is not None:
        stages[-1]["expand"] = expand
    train = {**data["train"], "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 1}
    changes = {
        "model": {"checkpoint": str(checkpoint), "dtype": dtype},
        "stages": stages,
        "train": {**train, "learning_rate": 0.03},
        "evaluate": {"tokens": 100, "samples": 0, "probes": 0},
        "methods": [{"name": "lora", "rank": 2, **settings}],
    }
    return parse_recipe({**{k: v for k, v in data.items() if k not in ("tokenizer", "inherit", "replay")}, **changes})


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def with_adapter(base, adapter):
    from peft import PeftModel

    return PeftModel.from_pretrained(base, adapter)


@pytest.fixture(scope="module")
def run(cards, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("lora") / "run"
    settings = {"targets": ["q_proj", "v_proj", "down_proj"], "dropout": 0.1, "alpha": 8.0}
    run_recipe(recipe(cards, checkpoint, "sea", "farm", expand=GROWTH, **settings), out)
    return out


def test_base_and_adapter_are_the_merged_model(run, checkpoint):
    stage = run / "stages" / "00-sea"
    base = load_model(checkpoint, "clm")
    before = logits(base)
    merged = logits(load_model(stage / "model", "clm"))
    torch.testing.assert_close(logits(with_adapter(base, stage / "adapter")), merged, atol=1e-5, rtol=0)
    assert float((merged - before).abs().max()) > 1e-2


def test_the_adapter_of_a_stage_that_grew_belongs_to_the_grown_base(run):
    from lifelong.lineage.maps import stage_at_newest_size

    stage = run / "stages" / "01-farm"
    merged = logits(load_model(stage / "model", "clm"))
    base = stage_at_newest_size(run, 0)
    torch.testing.assert_close(logits(with_adapter(base, stage / "adapter")), merged, atol=1e-4, rtol=0)


def test_the_folder_says_what_peft_asks(run, checkpoint):
    config = read_json(run / "stages" / "00-sea" / "adapter" / "adapter_config.json")
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 8.0, 0.1)
    assert (config["base_model_name_or_path"], config["task_type"]) == (str(checkpoint), "CAUSAL_LM")
    later = read_json(run / "stages" / "01-farm" / "adapter" / "adapter_config.json")
    assert later["base_model_name_or_path"] == "stages/00-sea/model"


def test_an_adapter_grows_with_the_model(run, checkpoint, tmp_path):
    """Grown base with grown adapter is the old base with the old adapter."""
    from lifelong.expand import grow, grow_adapter_folder, plan_expansion

    adapter = run / "stages" / "00-sea" / "adapter"
    base = load_model(checkpoint, "clm")
    old = logits(with_adapter(load_model(checkpoint, "clm"), adapter))
    larger, mapping, _ = grow(base, plan_expansion(base.config, **GROWTH), seed=0)
    grow_adapter_folder(adapter, mapping, tmp_path / "grown")
    new = logits(with_adapter(larger, tmp_path / "grown"))
    torch.testing.assert_close(new, old, atol=1e-4, rtol=0)
    # the map of the run itself will do as well
    kept = ExpansionMap.from_json(read_json(run / "stages" / "01-farm" / "expansion.json")["map"])
    grow_adapter_folder(adapter, kept, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["r"] == 2


@pytest.mark.parametrize("base", ["bfloat16", "float32", "4bit"])
def test_a_base_held_in_less_leaves_weights_and_adapter_that_agree(cards, checkpoint, tmp_path, base):
    if base == "4bit":
        pytest.importorskip("bitsandbytes")
    out, killed = tmp_path / "run", tmp_path / "killed"
    data = recipe(cards, checkpoint, "sea", base=base)
    run_recipe(data, out)
    stage = out / "stages" / "00-sea"
    model = load_model(stage / "model", "clm", dtype="auto")
    assert model.dtype == torch.float32
    loaded = with_adapter(load_model(checkpoint, "clm"), stage / "adapter")
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)
    if base != "float32":
        with pytest.raises(ZeroDivisionError):
            run_recipe(data, killed, Dies(0, 2))
        run_recipe(data, killed)
        assert comparable(killed) == comparable(out)


def test_a_bfloat16_model_keeps_its_precision_and_its_adapter_float32(cards, checkpoint, tmp_path):
    folder, out = tmp_path / "checkpoint", tmp_path / "run"
    shutil.copytree(checkpoint, folder)
    cast_weights(load_model(checkpoint, "clm"), "bfloat16").save_pretrained(folder)
    run_recipe(recipe(cards, folder, "sea", dtype="auto"), out)
    stage = out / "stages" / "00-sea"
    merged = load_model(stage / "model", "clm", dtype="auto")
    assert merged.dtype == torch.bfloat16
    loaded = with_adapter(load_model(folder, "clm"), stage / "adapter")
    assert {value.dtype for name, value in loaded.named_parameters() if "lora" in name} == {torch.float32}
    # merging rounds to bfloat16
    torch.testing.assert_close(logits(loaded), logits(merged.float()), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"targets": ["q_prj"]}, r"methods\.lora\.targets: no linear layer is called 'q_prj'.*q_proj"),
        ({"targets": "q_proj"}, r"methods\.lora\.targets: all-linear, or a list"),
        ({"targets": ["lm_head"]}, r"the output embedding gets no additions"),
        ({"dropout": 1.0}, r"methods\.lora\.dropout: must be at least 0 and below 1"),
        ({"base": "8bit"}, r"methods\.lora\.base: one of same, float32, bfloat16, 4bit"),
    ],
)
def test_wrong_settings_are_refused_before_there_is_a_folder(cards, checkpoint, tmp_path, settings, said):
    with pytest.raises(InputError, match=said):
        run_recipe(recipe(cards, checkpoint, "sea", **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_named_with_its_pip_line(cards, checkpoint, tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(InputError, match=r"methods\.lora\.base: 4bit .* pip install 'lifelong\[4bit\]'"):
        run_recipe(recipe(cards, checkpoint, "sea", base="4bit"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
