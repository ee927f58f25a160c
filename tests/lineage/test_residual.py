"""The instruction residual at the newest size: exact across growth, a plain sum without one, refused where it cannot be."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from lifelong.errors import InputError
from lifelong.expand import expand_model
from lifelong.expand.float64 import true_float64
from lifelong.expand.mapping import ExpansionMap
from lifelong.ledger.history import read_history
from lifelong.lineage.maps import carry_weights, maps_since
from lifelong.lineage.merge import weights_of
from lifelong.lineage.residual import merge_residual, residual_weights
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from lifelong.recipe.files import read_recipe_file
from tests.evaluate.test_chat import TEMPLATE
from tests.support import recipe_data, run_cli, tiny_checkpoint

IDS = torch.arange(5, 29)[None]


def loaded(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, cards):
    """A base, an instruct model with a template and other weights, and a run of the base that grows."""
    folder = tmp_path_factory.mktemp("residual")
    tiny_checkpoint(folder / "base", cards)
    tiny_checkpoint(folder / "instruct", cards, TEMPLATE, seed=1)
    data = recipe_data(cards, model={"checkpoint": str(folder / "base")}, inherit=None, replay=None)
    del data["tokenizer"]
    data["stages"] = [{**stage, "tokens": 600} for stage in data["stages"]]
    run_recipe(parse_recipe(data), folder / "run")
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_without_training_the_sum_computes_what_instruct_computes(family):
    configs = {
        "llama": transformers.LlamaConfig(
            vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2
        ),
        "gpt2": transformers.GPT2Config(vocab_size=64, n_embd=24, n_layer=2, n_head=2, n_positions=32),
    }
    torch.manual_seed(0)
    base, instruct = (transformers.AutoModelForCausalLM.from_config(configs[family]).double().eval() for _ in range(2))
    maps: list[ExpansionMap] = []
    newest = base
    for sizes in ({"hidden_size": 36, "heads": 3, "layers": 3}, {"intermediate_size": 180, "layers": 5}):
        from lifelong.expand import grow, plan_expansion

        newest, mapping, _ = grow(newest, plan_expansion(newest.config, **sizes), seed=len(maps))
        maps.append(mapping)
    newest = newest.double()
    merged = residual_weights(weights_of(newest), weights_of(instruct), weights_of(base), maps)
    parameters = dict(newest.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in merged.items():
            parameters[name].copy_(value)
    newest.tie_weights()
    with true_float64(), torch.no_grad():
        difference = (newest.eval()(IDS).logits - instruct(IDS).logits).abs().max()
        apart = (instruct(IDS).logits - base(IDS).logits).abs().max()
    assert difference < 1e-10
    assert apart > 1e-2


def test_the_command_writes_the_sum_with_the_tokenizer_of_instruct_and_shows_both_figures(
    folders, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "merged"
    named = ("--residual", folders / "instruct", "--base", folders / "base")
    assert run_cli(monkeypatch, "merge", folders / "run", *named, "--out", out, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    history = read_history(folders / "run")
    row = dict(zip(history.matrix.domains, history.matrix.nats_per_token[-1], strict=True))
    assert figures["nats_per_token"]["01-farm"] == row
    assert figures["nats_per_token"]["merged"].keys() == row.keys()
    assert figures["chat"].keys() == {"instruct", "merged"}
    assert figures["notes"] == []
    merged, newest = loaded(out), loaded(folders / "run/stages/01-farm/model")
    maps = maps_since(folders / "run", "initial")
    tuned, plain = (carry_weights(maps, weights_of(loaded(folders / name))) for name in ("instruct", "base"))
    old = weights_of(newest)
    for name, value in weights_of(merged).items():
        torch.testing.assert_close(value, old[name] + tuned[name] - plain[name], rtol=0, atol=1e-6)
    assert transformers.AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    assert json.loads((out / "merge.json").read_text())["residual"] == str(folders / "instruct")
    assert run_cli(monkeypatch, "merge", folders / "run", *named, "--out", out) == 2
    assert "already exists" in capsys.readouterr().err


def test_what_does_not_fit_is_named(folders, cards, tmp_path, monkeypatch, capsys):
    recipe = read_recipe_file(folders / "run").to_plain()
    grown, _ = expand_model(loaded(folders / "instruct"), layers=3, intermediate_size=56)
    grown.save_pretrained(tmp_path / "large")
    transformers.AutoTokenizer.from_pretrained(folders / "instruct").save_pretrained(tmp_path / "large")
    with pytest.raises(InputError) as caught:
        merge_residual(folders / "run", recipe, str(tmp_path / "large"), None, tmp_path / "out")
    assert f"layers: 3 in '{tmp_path / 'large'}', 2 in" in str(caught.value)
    assert "intermediate_size: 56" in str(caught.value)
    other = tiny_checkpoint(tmp_path / "other", cards, TEMPLATE)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[50:52]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="vocabulary: 2 tokens have other ids"):
        merge_residual(folders / "run", recipe, str(other), None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run_cli(monkeypatch, "merge", folders / "run", "--residual", other, "--weight", "0.5") == 2
    assert "takes --out DIR" in capsys.readouterr().err


def test_another_base_of_the_same_shape_is_told(folders, cards, tmp_path):
    recipe = read_recipe_file(folders / "run").to_plain()
    other = tiny_checkpoint(tmp_path / "other", cards, seed=2)
    found = merge_residual(folders / "run", recipe, str(folders / "instruct"), str(other), tmp_path / "out")
    assert "did not start from the weights of" in found.notes[0]
