"""Held-out text in the precision of training, as a recorded choice."""

from __future__ import annotations

import pytest
import torch

from lifelong.errors import InputError
from lifelong.evaluate.cards import evaluate_cards
from lifelong.evaluate.perplexity import evaluate_domain
from lifelong.ledger.history import read_history
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from tests.evaluate.test_perplexity import PAD, Documents, T, causal_model
from tests.support import recipe_data


def test_products_are_those_of_autocast():
    model, seen = causal_model("llama").eval(), set()
    (layer, *_) = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
    layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    settings = {"objective": "clm", "sequence_length": T, "pad_id": PAD}
    whole = evaluate_domain(model, Documents(), **settings)
    assert seen == {torch.float32}
    seen.clear()
    half = evaluate_domain(model, Documents(), **settings, autocast="bfloat16")
    assert torch.bfloat16 in seen
    assert half.nats != whole.nats
    assert half.nats == pytest.approx(whole.nats, rel=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        same = evaluate_domain(model, Documents(), **settings)
    assert same.document_nats == half.document_nats


def test_a_run_is_measured_as_it_was_told(cards, tmp_path):
    data = recipe_data(cards, inherit=None, replay=None)
    data["stages"] = [{"domain": str(cards / "sea.yaml"), "tokens": 1000}]
    data["model"] = {"family": "llama", "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 24}
    data["tokenizer"] = {"train": {"kind": "bpe", "vocab_size": 304}}
    data["train"]["bf16"] = True
    plain = parse_recipe(data)
    data["evaluate"] = {**data["evaluate"], "precision": "weights"}
    assert parse_recipe(data).fingerprint == plain.fingerprint
    data["evaluate"]["precision"] = "autocast"
    recipe = parse_recipe(data)
    assert recipe.fingerprint != plain.fingerprint
    for name, chosen in (("plain", plain), ("autocast", recipe)):
        run_recipe(chosen, tmp_path / name)
    losses = {name: read_history(tmp_path / name).losses[0][0] for name in ("plain", "autocast")}
    assert losses["autocast"].nats != losses["plain"].nats
    assert losses["autocast"].nats == pytest.approx(losses["plain"].nats, rel=0.01)
    (again,) = evaluate_cards(tmp_path / "autocast")
    assert again.document_nats == losses["autocast"].document_nats


def test_without_a_lower_precision_there_is_none_to_evaluate_in(cards):
    with pytest.raises(InputError, match=r"evaluate\.precision: autocast.*train\.bf16"):
        parse_recipe(recipe_data(cards, evaluate={"precision": "autocast"}))
