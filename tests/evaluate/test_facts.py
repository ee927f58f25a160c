"""Facts put into a stage: which rows change, what is asked, the jump and the law of forgetting."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from lifelong.errors import InputError
from lifelong.evaluate.facts.injection import (
    Fact,
    InjectedDataset,
    fact_blocks,
    injection_steps,
    invented_facts,
    read_facts,
)
from lifelong.evaluate.facts.probe import FactProbe, fact_steps
from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import check_run
from lifelong.metrics import compute_run
from lifelong.metrics._fact_curves import fact_life, power_law
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from lifelong.records import FactCurve, FactPoint
from lifelong.report import write_report
from lifelong.report.html import page
from lifelong.stream.blocks import Block
from tests.report.test_report import history as plain_history
from tests.support import recipe_data, write_domain


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts")
    for name in ("sea", "farm"):
        write_domain(folder, name)
    facts = {"stage": 0, "at": [0.4], "count": 3, "repeats": 4, "probes": 4}
    data = recipe_data(folder, facts=facts, replay=None, inherit=None, sequence_length=64)
    data["stages"][1].pop("expand")
    run_recipe(parse_recipe(data), folder / "run")
    return folder / "run"


def test_a_run_learns_its_facts_where_they_are_put_in_and_follows_them(run, tmp_path):
    history = read_history(run)
    facts = history.facts
    assert len(facts.texts) == 3
    assert len(facts.injected_at) == 1
    life = fact_life(history)
    ((at, before, peak),) = life.jumps
    assert peak > before + 0.3
    assert at == facts.injected_at[0]
    assert [p.fact for p in facts.points[1][:3]] == [0, 1, 2]
    assert life.curve[-1][0] == sum(record.tokens for record in history.stages)
    assert compute_run(history)["fact_jump"] == pytest.approx(peak - before)
    assert check_run(run) == []
    write_report(history, tmp_path)
    assert (tmp_path / "facts.png").is_file()
    assert facts.texts[0] in page(history)


def test_other_rows_stay_and_places_are_new_text_only():
    rows = [{"block": index, "is_replay": index % 3 == 0, "domain_id": 0, "mask_key": index} for index in range(24)]

    class Inner(list):
        blocks_per_step, num_steps, share = 8, 3, 0.33

    inner = Inner(rows)
    injected = InjectedDataset(inner, {1: ["one", "two"]})
    changed = [index for index in range(24) if injected[index] != rows[index]]
    assert changed == [8, 10]
    assert [injected[index]["block"] for index in changed] == ["one", "two"]
    assert all(not injected[index]["is_replay"] for index in changed)
    assert injected.share == 0.33
    assert len(injected) == 24
    spread = InjectedDataset(inner, {1: ["fact"] * 6})
    assert [index for index in range(24) if spread[index] != rows[index]] == [8, 10, 11, 13, 14, 16]
    with pytest.raises(InputError, match="6 rows of new text"):
        InjectedDataset(inner, {2: ["fact"] * 7})


def byte_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {letter: i for i, letter in enumerate(sorted(set(map(chr, range(32, 127)))))}
    backend = Tokenizer(models.WordLevel({**letters, "<s>": 200, "</s>": 201, "?": 202}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def test_the_probe_is_the_log_probability_of_the_target_given_the_prompt():
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=210, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.4,
    )).eval()  # fmt: skip
    tokenizer = byte_tokenizer()
    facts = invented_facts(4, seed=1)
    values = FactProbe(facts, tokenizer, "clm", pad_id=201)(model)
    for fact, value in zip(facts, values, strict=True):
        prompt = tokenizer(fact.prompt, add_special_tokens=False).input_ids
        whole = [200, *tokenizer(f"{fact.prompt} {fact.target}", add_special_tokens=False).input_ids]
        with torch.no_grad():
            log_p = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        expected = sum(float(log_p[t - 1, whole[t]]) for t in range(1 + len(prompt), len(whole)))
        assert value == pytest.approx(expected, abs=1e-4)


def test_blocks_hold_every_fact_in_one_piece():
    facts = invented_facts(5, seed=0)
    tokenizer = byte_tokenizer()
    blocks = fact_blocks(facts, tokenizer, 128, repeats=2)
    texts = []
    for block in blocks:
        assert isinstance(block, Block)
        assert len(block.ids) <= 128
        texts += [
            "".join(tokenizer.convert_ids_to_tokens(part[1:-1].tolist()))
            for part in np.split(block.ids, block.starts[1:])
        ]
    assert sorted(texts) == sorted([fact.text for fact in facts] * 2)
    with pytest.raises(InputError, match="row holds"):
        fact_blocks(facts, tokenizer, 16, repeats=1)


@given(st.integers(1, 60), st.integers(0, 5))
def test_invented_facts_are_distinct_and_a_function_of_the_seed(count, seed):
    facts = invented_facts(count, seed)
    assert facts == invented_facts(count, seed)
    assert len({fact.prompt for fact in facts}) == count


@given(st.integers(2, 3000), st.lists(st.floats(0, 0.99), min_size=1, max_size=3), st.integers(1, 20))
def test_every_injection_is_asked_before_and_right_after(num_steps, times, count):
    at = injection_steps(times, num_steps)
    steps = fact_steps(at, num_steps, count)
    assert all(step in steps for step in at)
    assert 0 in steps
    assert num_steps in steps
    assert all(0 <= step <= num_steps for step in steps)
    if count > 1:
        assert all(step + 1 in steps for step in at)


@given(st.floats(0.05, 1.5), st.floats(0.3, 5))
def test_a_power_law_is_found_again(decay, scale):
    fit = power_law([(float(t), scale * t**-decay) for t in (10, 30, 100, 500, 2000)])
    assert fit.decay == pytest.approx(decay)
    assert fit.scale == pytest.approx(scale)
    assert fit.r_squared == pytest.approx(1.0)


def test_jump_and_decay_by_hand():
    run = plain_history()
    values = {0: -10.0, 100: -10.0, 110: -4.0, 200: -6.0, 400: -7.0, 1000: -8.0}
    points = tuple(
        FactPoint(tokens // 10, tokens, fact, value + fact) for tokens, value in values.items() for fact in (0, 1)
    )
    run = replace(run, facts=FactCurve(("a b.", "c d."), 0, (100,), (points, ())))
    life = fact_life(run)
    assert life.jumps == [(100.0, -9.5, -3.5)]
    assert life.retained == [(90.0, pytest.approx(4 / 6)), (290.0, 0.5), (890.0, pytest.approx(2 / 6))]
    metrics = compute_run(run)
    assert metrics["fact_jump"] == 6.0
    assert 0.25 < metrics["fact_decay"] < 0.35
    assert compute_run(plain_history())["fact_jump"] is None


def test_power_law_needs_three_points_that_are_left():
    assert power_law([(10.0, 0.5), (20.0, 0.4)]) is None
    assert power_law([(10.0, 0.5), (20.0, -0.4), (30.0, 0.2)]) is None
    assert math.isfinite(power_law([(10.0, 0.5), (20.0, 0.4), (30.0, 0.2)]).decay)


def test_bad_facts_are_one_clear_error(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_text('{"prompt": "The sea is", "target": "salt"}\n{"prompt": "x"}\n')
    with pytest.raises(InputError, match=r"facts\.jsonl:2"):
        read_facts(path)
    path.write_text('{"prompt": "The sea is", "target": "salt"}\n')
    assert read_facts(path) == [Fact("The sea is", "salt")]
    for name in ("sea", "farm"):
        write_domain(tmp_path, name)
    with pytest.raises(InputError, match=r"facts.stage"):
        parse_recipe(recipe_data(tmp_path, facts={"stage": 2, "at": [0.1]}))
    with pytest.raises(InputError, match=r"facts.at"):
        parse_recipe(recipe_data(tmp_path, facts={"at": [1.5]}))
    recipe = parse_recipe(recipe_data(tmp_path, facts={"at": [0.1], "file": str(tmp_path / "none.jsonl")}))
    with pytest.raises(InputError, match=r"none\.jsonl"):
        run_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
