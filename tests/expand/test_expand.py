import math

import pytest
import torch

from lifelong.errors import ExpansionError
from lifelong.expand import ExpansionMap, expand_model, grow, plan_expansion, width
from lifelong.expand.plan import layer_sources
from tests.contracts.test_families import tiny


@pytest.mark.parametrize(("targets", "message"), [
    ({"hidden_size": 16}, "hidden_size: 16 is smaller than the model's 24"),
    ({"heads": 7, "kv_heads": 2}, "7 is no multiple of kv_heads 2; with 7 heads, kv_heads may be"),
    ({"kv_heads": 3, "heads": 6}, None),
    ({"head_dim": 16}, "rotary heads keep their size of 8"),
])  # fmt: skip
def test_infeasible_targets_are_refused(targets, message):
    if message is None:
        plan_expansion(tiny("llama").config, **targets)
        return
    with pytest.raises(ExpansionError, match=message):
        plan_expansion(tiny("llama").config, **targets)


def test_heads_that_cannot_be_placed_are_refused():
    with pytest.raises(ExpansionError, match="at least 4 kv_heads are needed"):
        plan_expansion(tiny("llama", heads=6, kv_heads=2).config, heads=6, kv_heads=3)


def test_weights_that_are_not_finite_are_refused():
    model = tiny("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(ExpansionError, match=r"model.norm.weight.*not finite"):
        expand_model(model, layers=3)


def test_elle_mode_copies_at_random_and_says_how_far_the_function_moved():
    grown, report = expand_model(tiny("llama"), hidden_size=36, layers=3, mode="elle")
    assert report.max_logit_difference_float64 > 1e-3
    assert report.passed
    assert grown.config.num_hidden_layers == 3


def test_the_map_survives_json():
    model = tiny("llama")
    plan = plan_expansion(model.config, hidden_size=40, layers=4, heads=8)
    grown, mapping, _ = grow(model, plan, seed=3)
    again = ExpansionMap.from_json(mapping.to_json()).apply(dict(model.named_parameters()))
    assert all(torch.equal(p, again[n]) for n, p in grown.named_parameters())


def test_layers_are_inserted_evenly():
    assert [old for old, new in layer_sources(4, 6) if new] == [1, 3]
    assert [old for old, new in layer_sources(2, 3) if new] == [1]
    assert len(layer_sources(2, 7)) == 7


@pytest.mark.parametrize("wrong", [1.0, 1 / 0.7])
def test_a_missing_square_root_is_caught(monkeypatch, wrong):
    """Verification must notice a wrong scale of the stream."""
    monkeypatch.setattr(width.math, "sqrt", lambda value: value * wrong)
    _, report = expand_model(tiny("llama"), hidden_size=36)
    assert not report.passed
