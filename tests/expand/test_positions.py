"""Functions of position and length: larger heads, more positions, windows; what would change them is refused."""

import pytest
import torch

from lifelong.errors import ExpansionError
from lifelong.expand import expand_model, plan_expansion
from lifelong.expand.positions import rotary_tables
from lifelong.expand.verify import random_tokens
from tests.expand.models import tiny

LONG = 150
TABLES = {
    "linear": {"factor": 2.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "short_factor": [1.0, 1.1, 1.2, 1.4], "long_factor": [1.0, 2.0, 3.0, 4.0], "factor": 4.0,
        "original_max_position_embeddings": 40,
    },
    "dynamic": {"factor": 2.0},
}  # fmt: skip


def rotary(rope_type, family="llama", **settings):
    parameters = {"rope_type": rope_type, "rope_theta": 10000.0, **TABLES[rope_type]}
    return tiny(family, rope_parameters=parameters, **settings)


def moved_on_a_long_text(model, grown):
    ids = torch.randint(3, 61, (1, LONG), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before, after = model(ids).logits, grown(ids).logits
    return float((before - after).abs().max() / before.abs().max())


@pytest.mark.parametrize("rope_type", ["linear", "llama3", "yarn", "longrope"])
@pytest.mark.parametrize("size", [{"head_dim": 16}, {"head_dim": 12}, {"positions": 256}])
def test_scaled_rotary_tables_are_kept_far_beyond_the_maximum(rope_type, size):
    model = rotary(rope_type)
    grown, report = expand_model(model, **size)
    assert report.passed
    assert moved_on_a_long_text(model, grown) < 5e-6


def test_a_table_that_becomes_longrope_keeps_no_settings_of_its_old_type():
    grown, _ = expand_model(rotary("llama3"), head_dim=12)
    assert not {"low_freq_factor", "high_freq_factor"} & set(grown.config.rope_parameters)


@pytest.mark.parametrize(("size", "message"), [
    ({"head_dim": 16}, r"head_dim: 16: .*\(dynamic\).*the only exact size: 8"),
    ({"positions": 256}, r"positions: 256: .*\(dynamic\).*beyond 64 tokens; leave positions out"),
])  # fmt: skip
def test_a_table_that_no_size_keeps_is_refused(size, message):
    with pytest.raises(ExpansionError, match=message):
        plan_expansion(rotary("dynamic").config, **size)
    _, report = expand_model(rotary("dynamic"), hidden_size=36, layers=3)
    assert report.passed


def test_an_attention_factor_that_hangs_on_the_number_of_positions_is_written_down():
    settings = {"original_max_position_embeddings": 32, "hidden_size": 32}
    parameters = {"rope_type": "longrope", "rope_theta": 1e4, **TABLES["longrope"]}
    del parameters["factor"]
    parameters["original_max_position_embeddings"] = 32
    model = tiny("phi3", rope_parameters=parameters, **settings)
    grown, report = expand_model(model, positions=400)
    assert report.passed
    assert moved_on_a_long_text(model, grown) == 0
    with pytest.raises(ExpansionError, match=r"short_factor.*nearest exact hidden size for 4 heads: 48"):
        plan_expansion(model.config, head_dim=12)


@pytest.mark.parametrize(("key", "wrong"), [
    ("long_factor", lambda table: [1.0] * len(table["short_factor"])),
    ("attention_factor", lambda _table: 1.5),
    ("original_max_position_embeddings", lambda _table: 64),
])  # fmt: skip
def test_a_table_that_is_wrong_only_on_long_texts_is_seen(monkeypatch, key, wrong):
    from lifelong.expand import plan as planning

    right = planning.plan_channels

    def spoiled(*args, **settings):
        made = right(*args, **settings)
        made.parameters[key] = wrong(made.parameters)
        return made

    monkeypatch.setattr(planning, "plan_channels", spoiled)
    with pytest.raises(ExpansionError, match=r"rotary table of the grown model differs .* leave head_dim as it is"):
        expand_model(rotary("longrope"), head_dim=16)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("layer_types", ["full_attention"] * 3, "layer 0 of the grown model has self_attn.*sliding"),
    ("sliding_window", 5, "sliding_window: 5"),
    ("final_logit_softcapping", 7.0, "final_logit_softcapping of the grown configuration is 7.0, not 30.0"),
    ("attn_logit_softcapping", 7.0, "attn_logit_softcapping: 7.0"),
])  # fmt: skip
def test_windows_and_softcaps_are_compared_layer_by_layer(monkeypatch, key, value, message):
    from lifelong.expand import plan as planning

    right = planning._grown_config

    def spoiled(*args):
        made = right(*args)
        setattr(made, key, value)
        return made

    monkeypatch.setattr(planning, "_grown_config", spoiled)
    with pytest.raises(ExpansionError, match=message):
        expand_model(tiny("gemma2", sliding_window=4096), layers=3)


def test_positions_behind_the_padding_token_are_left_alone():
    model = tiny("roberta", pad_token_id=9)
    model.config.max_position_embeddings = 24
    plan = plan_expansion(model.config, layers=3)
    assert random_tokens(plan).shape == (2, 24 - 10)


def test_tables_by_kind_of_layer_are_all_compared():
    tables = rotary_tables(tiny("gemma3", layer_types=["sliding_attention", "full_attention"]), 100)
    assert set(tables) == {"full_attention", "sliding_attention"}
    assert not torch.equal(*(table[0] for table in tables.values()))
