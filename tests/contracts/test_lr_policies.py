"""What every learning-rate policy must fulfil, and that adding one is adding one file."""

import importlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong.errors import InputError
from lifelong.files import read_json
from lifelong.pipeline import run_recipe
from lifelong.plan import plan_recipe
from lifelong.plugins import plugin_names
from lifelong.recipe import parse_recipe
from lifelong.train.policies._policy import StageSpan, make_policy
from lifelong.train.settings import POLICIES, LrSection
from tests.support import recipe_data, write_domain

NAMES = plugin_names(POLICIES)
SPANS = [StageSpan(0, 100, 400), StageSpan(100, 100, 400), StageSpan(200, 200, 400)]
ANNEALED = [name for name in NAMES if name != "continue"]  # its floor is reached once, at the end of the stream
names = st.sampled_from(NAMES)
shares = st.floats(0.01, 0.4)

HALVES = '''"""Half the peak, all the time."""

from lifelong.train.policies._policy import LrPolicy


class Plugin(LrPolicy):
    """Constant."""

    def shape(self, span, progress):
        """Half the peak."""
        return 0.5 * self.peak(span)
'''


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_without_settings_names_it(name):
    assert make_policy(LrSection(policy=name)).conflict() is None


@given(names, shares, shares, st.floats(0, 0.9), st.sampled_from(SPANS), st.floats(0, 1))
def test_a_factor_is_between_zero_and_the_peak_of_the_stage(name, warmup, decay, floor, span, progress):
    policy = make_policy(LrSection(policy=name, warmup=warmup, decay=decay, floor=floor))
    assert 0 < policy.peak(span) <= 1
    assert 0 <= policy.factor(span, progress) <= policy.peak(span) + 1e-12


@given(names, shares, shares, st.floats(0, 0.9), st.sampled_from(SPANS), st.floats(0, 0.999))
def test_nothing_jumps_inside_a_stage(name, warmup, decay, floor, span, progress):
    policy = make_policy(LrSection(policy=name, warmup=warmup, decay=decay, floor=floor))
    step = 1e-5
    change = policy.factor(span, progress + step) - policy.factor(span, progress)
    assert abs(change) < 2 * step / min(warmup, decay)


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_begins_at_zero_exactly_where_it_warms_up(name):
    policy = make_policy(LrSection(policy=name, warmup=0.1))
    assert [policy.factor(span, 0.0) == 0 for span in SPANS] == [policy.warmup(span) > 0 for span in SPANS]


@pytest.mark.parametrize("name", ANNEALED)
def test_every_released_stage_ends_at_the_floor(name):
    policy = make_policy(LrSection(policy=name, floor=0.1))
    assert [policy.factor(span, 1.0) for span in SPANS] == pytest.approx([0.1 * policy.peak(span) for span in SPANS])


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_kept_inside_the_stage_or_not_at_all(name):
    policy = make_policy(LrSection(policy=name, decay=0.25))
    assert policy.trunk_step(100) == (75 if policy.keeps_trunk else None)


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    for name in ("sea", "farm"):
        write_domain(folder, name, documents=12)
    return folder


def test_an_unknown_policy_is_refused_with_the_nearest_name(cards):
    data = recipe_data(cards, lr={"policy": "rewarn"})
    with pytest.raises(InputError, match=r"lr\.policy: there is no policy 'rewarn'; did you mean 'rewarm'"):
        parse_recipe(data)


def test_adding_a_policy_is_adding_a_file(cards, tmp_path, monkeypatch):
    plugins = tmp_path / "policies"
    plugins.mkdir()
    (plugins / "halves.py").write_text(HALVES)
    package = importlib.import_module(POLICIES)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(plugins)])
    data = recipe_data(
        cards, inherit=None, replay=None, evaluate={"tokens": 100, "samples": 0}, lr={"policy": "halves"}
    )
    data["stages"] = [{"domain": data["stages"][0]["domain"], "tokens": 2560}]
    data["tokenizer"] = {"train": {"vocab_size": 300}}
    data["train"] = {**data["train"], "logging_steps": 1}
    recipe = parse_recipe({key: value for key, value in data.items() if value is not None})
    assert plan_recipe(recipe).stages[0].warmup_steps == round(0.05 * 10)
    run_recipe(recipe, tmp_path / "run")
    points = read_json(tmp_path / "run/stages/00-sea/history.json")["train"]
    assert [point["learning_rate"] for point in points] == pytest.approx([0.0] + [0.5 * 3e-3] * 9)
