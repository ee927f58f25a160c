"""The learning rate over a stream: continuous where it should be, and at the levels that the policies promise."""

import pytest
import torch

from lifelong.errors import InputError
from lifelong.files import read_json
from lifelong.ledger.ledger import Ledger, check_run
from lifelong.lm.checkpoint import load_model
from lifelong.pipeline import run_recipe
from lifelong.pipeline.begin import last_model
from lifelong.plan import plan_recipe
from lifelong.plan.show import sparkline
from lifelong.recipe import parse_recipe
from lifelong.train.learning_rates import stage_span
from lifelong.train.policies._policy import StageSpan, make_policy
from lifelong.train.settings import LrSection
from tests.support import recipe_data, write_domain

SPANS = [StageSpan(0, 100, 400), StageSpan(100, 100, 400), StageSpan(200, 200, 400)]


def made(policy, **settings):
    return make_policy(LrSection(policy=policy, **settings))


def test_continue_is_one_cosine_over_all_stages():
    policy = made("continue", warmup=0.1)
    ends, starts = [policy.factor(s, 1.0) for s in SPANS], [policy.factor(s, 0.0) for s in SPANS]
    assert starts[0] == 0
    assert starts[1:] == pytest.approx(ends[:-1])
    assert ends == pytest.approx([0.5 * (1 + 2**-0.5), 0.5, 0.0])


def test_infinite_continues_from_the_pre_decay_weights():
    policy = made("infinite", decay=0.25, constant=0.6, cooldown=0.3)
    assert policy.factor(SPANS[0], 0.75) == pytest.approx(0.6)
    assert policy.factor(SPANS[1], 0.0) == pytest.approx(0.6)
    assert policy.factor(SPANS[0], 0.05) == pytest.approx(1.0)
    assert policy.trunk_step(100) == 75
    assert made("wsd").trunk_step(100) is None


def test_autoregressive_peaks_fall_from_stage_to_stage():
    policy = made("autoregressive")
    equal = [StageSpan(100 * i, 100, 400) for i in range(4)]
    peaks = [policy.peak(span) for span in equal]
    assert peaks == pytest.approx([1.0, 0.5, 0.25, 0.5 * (1 - 2**-0.5)])


def test_a_curve_can_be_printed():
    policy = made("rewarm", warmup=0.25)
    drawn = sparkline([policy.factor(SPANS[0], (place + 0.5) / 8) for place in range(8)], 1.0)
    assert len(drawn) == 8
    assert drawn[2] == "█"
    assert drawn[-1] == "▁"


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    for name in ("sea", "farm"):
        write_domain(folder, name, documents=12)
    return folder


def short_run(cards, out, **changes):
    data = recipe_data(cards, inherit=None, replay=None, evaluate={"tokens": 100, "samples": 0}, **changes)
    data["stages"] = [{"domain": stage["domain"], "tokens": 1280} for stage in data["stages"]]
    data["train"] = {**data["train"], "logging_steps": 1}
    recipe = parse_recipe({key: value for key, value in data.items() if value is not None})
    run_recipe(recipe, out)
    return recipe


def rates(out, stage):
    points = read_json(out / "stages" / stage / "history.json")["train"]
    return [point["learning_rate"] / 3e-3 for point in points]


def test_a_run_follows_its_policy_and_infinite_starts_from_the_pre_decay_weights(cards, tmp_path):
    out = tmp_path / "run"
    recipe = short_run(cards, out, lr={"policy": "infinite", "warmup": 0.2, "decay": 0.4})
    policy = made("infinite", warmup=0.2, decay=0.4)
    for index, stage in enumerate(("00-sea", "01-farm")):
        span = stage_span([section.tokens for section in recipe.stages], index)
        assert rates(out, stage) == pytest.approx([policy.factor(span, step / 5) for step in range(5)])
    first, trunk = (
        dict(load_model(out / "stages/00-sea" / name, "clm").named_parameters()) for name in ("model", "trunk")
    )
    assert any(not torch.equal(first[name], trunk[name]) for name in first)
    assert not (out / "stages/01-farm/trunk/optimizer.pt").exists()
    assert check_run(out) == []
    # the second stage began with the trunk: a run that stops there and is continued from the folder ends in the same bits
    start = dict(last_model_of(out, recipe).named_parameters())
    kept = dict(load_model(out / "stages/01-farm/trunk", "clm").named_parameters())
    assert all(torch.equal(start[name], kept[name]) for name in start)


def last_model_of(out, recipe):
    with Ledger.open(out) as ledger:
        return last_model(ledger, recipe)


def test_the_plan_draws_the_curve_that_training_follows(cards, tmp_path):
    data = recipe_data(cards, lr={"policy": "wsd", "warmup": 0.25, "decay": 0.25})
    plan = plan_recipe(parse_recipe(data))
    assert plan.stages[0].learning_rates[5] == pytest.approx(3e-3)
    assert plan.stages[0].learning_rates[-1] < 1e-3
    assert plan.stages[0].warmup_steps == 4
    plain = plan_recipe(parse_recipe(recipe_data(cards))).stages[0]
    assert max(plain.learning_rates) > 0.9 * 3e-3
    assert plain.learning_rates[-1] < 0.2 * 3e-3


def test_two_deciders_of_the_learning_rate_are_refused(cards):
    data = recipe_data(cards, lr={"policy": "wsd"})
    data["train"]["warmup_steps"] = 0.1
    with pytest.raises(InputError, match=r"`lr:` decides .* take train.warmup_steps out"):
        parse_recipe(data)
