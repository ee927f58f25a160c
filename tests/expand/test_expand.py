"""Refusals, layers, ELLE, and that verification sees what is wrong."""

import dataclasses
import json
import math
import re
import types

import pytest
import torch

from lifelong.errors import ExpansionError, UnknownNameError
from lifelong.expand import (
    ExpansionMap,
    expand_model,
    expansion_map,
    family_of,
    grow,
    model_shape,
    new_config,
    plan_expansion,
    rope,
    true_float64,
    width,
)
from lifelong.expand.depth import chain_gains, place_layers
from lifelong.expand.family import load_family, reader
from lifelong.plugins import plugin_names
from tests.expand.models import batch, tiny


@pytest.mark.parametrize(("family", "targets", "message"), [
    ("llama", {"hidden_size": 16}, "hidden_size: 16 is smaller than the model's 24"),
    ("llama", {"heads": 7, "kv_heads": 2}, "7 is not a multiple of kv_heads 2; with 7 heads, kv_heads may be"),
    ("llama", {"head_dim": 9}, "9 is odd.*nearest: 8 and 10"),
    ("llama", {"experts": 4, "experts_per_token": 5}, "5 of 4 experts"),
    ("qwen2", {"experts": 4}, "no mixture of experts"),
    ("bert", {"hidden_size": 36}, "not a multiple of 24.*nearest exact sizes: 24 and 48"),
    ("roberta", {"hidden_size": 30}, "not a multiple of 24"),
    ("gpt2", {"heads": 6}, "name hidden_size 36 too"),
    ("gpt2", {"hidden_size": 40}, "nearest: 36 and 42"),
    ("gpt2", {"kv_heads": 2}, "leave kv_heads out"),
    ("mixtral", {"experts": 6}, "nearest: 4 and 8"),
    ("mixtral", {"experts": 8, "experts_per_token": 2}, "has to be 4"),
])  # fmt: skip
def test_infeasible_targets_are_refused_with_what_is_feasible(family, targets, message):
    with pytest.raises(ExpansionError, match=message):
        plan_expansion(tiny(family).config, **targets)


def test_heads_that_cannot_be_placed_are_refused():
    config = tiny("llama", heads=6, kv_heads=2).config
    with pytest.raises(ExpansionError, match=r"at least kv_heads 4 \(heads 8\), or heads 9 with kv_heads 3"):
        plan_expansion(config, heads=6, kv_heads=3)
    plan_expansion(config, heads=8, kv_heads=4)
    plan_expansion(config, heads=9, kv_heads=3, hidden_size=27)


@pytest.mark.parametrize(("family", "targets"), [
    ("bert", {"hidden_size": 36}),
    ("llama", {"heads": 6, "kv_heads": 3}),
])  # fmt: skip
def test_an_approximate_growth_continues_and_reports_the_gap(family, targets):
    model = tiny(family) if family == "bert" else tiny(family, heads=6, kv_heads=2)
    _, report = expand_model(model, approximate=True, **targets)
    assert report.passed
    assert report.mode == "approximate"
    assert 1e-6 < report.max_logit_difference_float64 < 100


def test_an_unknown_architecture_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"add_a_family.md.*no family for model_type 't5'.*in all"):
        family_of(types.SimpleNamespace(model_type="t5"))
    with pytest.raises(UnknownNameError, match="no axis 'hiden_size'; did you mean 'hidden_size'"):
        plan_expansion(tiny("llama").config, hiden_size=48)


def test_two_families_that_claim_one_type_are_named(monkeypatch):
    monkeypatch.setattr("lifelong.expand.family.plugin_names", lambda _package: ["llama", "mistral"])
    claimed = dataclasses.replace(load_family("mistral"), model_types=("llama",))
    monkeypatch.setattr(
        "lifelong.expand.family.load_family", {"llama": load_family("llama"), "mistral": claimed}.__getitem__
    )
    with pytest.raises(ExpansionError, match="model_type 'llama' is claimed by 2 families: llama, mistral"):
        family_of("llama")


def test_a_wrong_table_is_refused_by_family_and_parameter(monkeypatch):
    table = {**load_family("llama").parameters, "model.layers.{layer}.mlp.up_proj.weight": reader("o")}
    wrong = dataclasses.replace(load_family("llama"), parameters=table)
    monkeypatch.setattr("lifelong.expand.plan.family_of", lambda _config: wrong)
    with pytest.raises(
        ExpansionError, match=r"family 'llama': .*'model.layers.0.mlp.up_proj.weight' the .*shape \[32, 24"
    ):
        expand_model(tiny("llama"), layers=3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "phi3"])
def test_old_entries_of_matrices_stay_bit_for_bit_in_bfloat16(family):
    model = tiny(family).to(torch.bfloat16)
    targets = {"hidden_size": 36} if family != "gpt2" else {"hidden_size": 42, "heads": 7}
    plan = plan_expansion(model.config, **targets)
    assert plan.ratio == 24 / plan.target["hidden_size"]
    mapping = expansion_map(plan, type(model))
    old = {name: value.detach() for name, value in model.named_parameters(remove_duplicate=False)}
    grown = mapping.apply_weights(old)
    for name, value in grown.items():
        if value.dim() > 1:
            axes = mapping.axes_of(mapping.tensors[name])
            kept = [axis.is_old & ~axis.is_copy for axis in axes]
            sources = [axis.source[mask] for axis, mask in zip(axes, kept, strict=True)]
            moved = value[torch.meshgrid(*(mask.nonzero().flatten() for mask in kept), indexing="ij")]
            assert torch.equal(moved, old[name][torch.meshgrid(*sources, indexing="ij")]), name


def test_the_report_shows_the_rounding_of_the_model_before():
    _, report = expand_model(tiny("llama"), hidden_size=36)
    assert any(
        re.search(r"rounding of the model before growth.*float32 \d.*bfloat16 \d", note) for note in report.notes
    )


@pytest.mark.parametrize("family", plugin_names("lifelong.expand.families"))
def test_a_configuration_grows_after_a_trainer_has_touched_it(family):
    config = tiny(family).config
    config.use_cache = False  # as Trainer does to every model, also to those that know no cache
    layers = model_shape(config)["layers"] + 1
    assert model_shape(plan_expansion(config, layers=layers).target_config)["layers"] == layers


def test_a_model_with_other_parameters_is_refused():
    model = tiny("llama")
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ExpansionError, match=r"extra.weight.*matched by 0 entries"):
        expand_model(model, layers=3)


def test_weights_that_are_not_finite_are_refused():
    model = tiny("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(ExpansionError, match=r"model.norm.weight.*not finite"):
        expand_model(model, layers=3)


def test_model_and_random_state_are_unchanged():
    model = tiny("gpt2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    expand_model(model, hidden_size=48, heads=8, layers=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_growth_is_a_function_of_its_seed():
    model = tiny("llama")
    grown = [expand_model(model, hidden_size=48, seed=seed)[0].state_dict() for seed in (1, 1, 2)]
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(grown[0][name], grown[1][name])
    assert not torch.equal(grown[0][name], grown[2][name])


def test_layers_go_where_they_are_asked_to():
    inserted = lambda layers: [layer.source for layer in layers if layer.inserted]  # noqa: E731
    assert inserted(place_layers(4, 6)) == [1, 3]
    assert inserted(place_layers(2, 3)) == [1]
    assert inserted(place_layers(4, 6, "last")) == [3, 3]
    assert inserted(place_layers(4, 6, [0, 0])) == [0, 0]
    assert len(place_layers(2, 7)) == 7
    with pytest.raises(ExpansionError, match="has to name 2 layers between 0 and 3"):
        place_layers(4, 6, [0])
    with pytest.raises(ExpansionError, match="known: interleaved, last"):
        place_layers(4, 6, "first")


def test_lists_of_the_configuration_follow_the_layers():
    model = tiny("gemma3", layers=4, layer_types=["sliding_attention", "full_attention"] * 2)
    grown, report = expand_model(model, layers=6, placement=[0, 3])
    assert report.passed
    s, f = "sliding_attention", "full_attention"
    assert grown.config.layer_types == [s, s, f, s, f, f]
    assert [layer.self_attn.layer_idx for layer in grown.model.layers] == list(range(6))


def test_old_tokens_keep_their_logits_and_new_ones_take_little():
    model = tiny("llama")
    grown, _ = expand_model(model, vocab_size=90)
    ids = batch(model)["input_ids"]
    before, after = model(ids).logits, grown(ids).logits
    assert torch.equal(before, after[..., :61])
    # the mean of the old logits cannot be more probable than the old tokens together are
    assert after[..., 61:].logsumexp(-1).sub(before.logsumexp(-1)).max() < math.log(29 / 61) + 0.1


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 1e-3])
@pytest.mark.parametrize("inserted", [1, 2])
def test_layers_of_post_norm_encoders(epsilon, inserted):
    model = tiny("roberta")
    model.config.layer_norm_eps = epsilon
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = epsilon
    _, report = expand_model(model, layers=2 + inserted, placement=[0] * inserted)
    assert report.passed


def test_the_naive_chain_of_norms_is_not_exact(monkeypatch):
    monkeypatch.setattr("lifelong.expand.mapping.chain_gains", lambda epsilon, inserted: chain_gains(0.0, inserted))
    _, report = expand_model(tiny("roberta"), layers=3)
    assert report.max_logit_difference_float64 > 1e-5


def test_elle_mode_copies_at_random_and_says_how_far_the_function_moved():
    model = tiny("bert")
    grown, report = expand_model(model, hidden_size=36, layers=3, mode="elle")
    assert report.max_logit_difference_float64 > 1e-2
    assert report.passed
    assert grown.config.num_hidden_layers == 3
    # each old column is shared among its copies: sums over copies differ from the old weight by the noise alone
    plan = plan_expansion(model.config, hidden_size=36, mode="elle")
    grown, mapping, _ = grow(model, plan)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    source = mapping.axes["stream.read"].source
    summed = torch.zeros(40, 24).index_add_(1, source, grown.get_parameter(name).detach())
    assert (summed - model.get_parameter(name)).abs().max() < 0.01 * 6 * 2


def test_the_map_survives_json():
    model = tiny("gemma3")
    plan = plan_expansion(model.config, hidden_size=40, layers=4, heads=8, head_dim=12, strategy="pairs")
    grown, mapping, _ = grow(model, plan, seed=3)
    again = ExpansionMap.from_json(json.loads(json.dumps(mapping.to_json())))
    weights = again.apply_weights(dict(model.named_parameters()))
    assert all(torch.equal(p, weights[n]) for n, p in grown.named_parameters())


def test_true_float64_sees_what_the_libraries_hide():
    model = tiny("llama").double()
    ids = batch(model)["input_ids"]
    with true_float64():
        exact = model(ids).logits
    assert torch.float32 is not torch.float64
    rough = model(ids).logits
    assert 1e-9 < (exact - rough).abs().max() < 1e-4


MUTATIONS = {
    "stream scale": (width.math, "sqrt", lambda value: value, {"hidden_size": 42, "heads": 7}, "gpt2"),
    "score scale": (width.math, "sqrt", lambda value: 1.0, {"head_dim": 16}, "llama"),
    "rotary pairs": (
        rope, "_paired", lambda pairs, old, new, interleaved=False: torch.cat([torch.arange(old), torch.full((new - old,), -1)]),
        {"head_dim": 16}, "llama",
    ),
    "copies": (width, "_copies", lambda index, size: torch.ones(len(index), dtype=torch.float64),
               {"hidden_size": 36}, "olmo2"),
    "heads": (width, "by_channel", lambda heads, channels, size: torch.arange(len(heads) * len(channels)) % 16,
              {"heads": 8, "kv_heads": 4}, "llama"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_verification_sees_a_wrong_construction(monkeypatch, name):
    place, attribute, wrong, targets, family = MUTATIONS[name]
    strategy = "clone" if name == "copies" else "pad"
    _, right = expand_model(tiny(family), strategy=strategy, **targets)
    monkeypatch.setattr(place, attribute, wrong)
    _, report = expand_model(tiny(family), strategy=strategy, **targets)
    assert right.passed
    assert not report.passed


@pytest.mark.parametrize("rope_type", ["linear", "llama3", "yarn"])
def test_scaled_rotary_tables_are_kept(rope_type):
    extra = {
        "linear": {"factor": 2.0},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    }[rope_type]
    model = tiny("llama", rope_parameters={"rope_type": rope_type, "rope_theta": 10000.0, **extra})
    for size in (16, 12):
        _, report = expand_model(model, head_dim=size)
        assert report.passed, size


def test_new_models_have_sensible_sizes():
    llama = new_config("llama", vocab_size=100, max_positions=64, layers=4, hidden_size=128, heads=4)
    assert (llama.intermediate_size, llama.num_key_value_heads, llama.head_dim) == (352, 4, 32)
    gpt2 = new_config("gpt2", vocab_size=100, max_positions=64, hidden_size=96, heads=3)
    assert (gpt2.n_inner, gpt2.n_positions) == (384, 64)
    roberta = new_config("roberta", vocab_size=100, max_positions=64, pad_token_id=1)
    assert roberta.max_position_embeddings == 66
    assert new_config("gemma2", vocab_size=100, max_positions=64, head_dim=16).query_pre_attn_scalar == 16
    with pytest.raises(UnknownNameError, match="did you mean 'llama'"):
        new_config("lama", vocab_size=100, max_positions=64)
    with pytest.raises(ExpansionError, match="not a multiple of 5 heads"):
        new_config("llama", vocab_size=100, max_positions=64, heads=5)
