"""Laws that hold for every method file, without naming any.

What a method cannot do without, it says by class attributes (`needs_memory`, `supports_sharding`, `exclusive`), never by its name.
"""

import gc

import pytest
import torch

from lifelong.errors import InputError
from lifelong.ledger.ledger import read_records
from lifelong.methods._make import make_methods
from lifelong.pipeline import run_recipe
from lifelong.plugins import load_plugin, plugin_names
from lifelong.recipe import parse_recipe
from lifelong.recipe.check import check_recipe
from tests.laws.stages import LENGTH, STEPS, Run, same
from tests.support import recipe_data, write_domain

METHODS = plugin_names("lifelong.methods")
CAREFUL = {"adam_epsilon": 1e-2}


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """Trainer collects garbage at the end of every phase; what was imported need not be looked at each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def plugin(name):
    return load_plugin("lifelong.methods", name, kind="method").Plugin


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("sequential"), train=CAREFUL)


@pytest.fixture(scope="module", params=METHODS)
def trained(request, tmp_path_factory):
    """Name of a method, and a run with it."""
    return request.param, Run(tmp_path_factory.mktemp(request.param), [{"name": request.param}], train=CAREFUL)


@pytest.mark.parametrize("name", METHODS)
def test_strength_zero_creates_no_plugin(name):
    assert make_methods([(name, {"strength": 0})]) == []


def test_strength_zero_is_sequential_training_bit_for_bit(sequential, tmp_path):
    nothing = [{"name": name, "strength": 0} for name in METHODS]
    assert same(Run(tmp_path, nothing, train=CAREFUL).weights, sequential.weights)


def test_with_its_default_strength_it_changes_the_second_stage(trained, sequential):
    _, run = trained
    assert not same(run.weights, sequential.weights)


def test_it_leaves_a_stock_model_that_can_learn(trained, sequential):
    """Nothing of the method stays in the model: not its parameters, nor its forwards, nor what it froze."""
    _, run = trained
    assert run.weights.keys() == sequential.weights.keys()
    assert all(torch.isfinite(value).all() for value in run.weights.values())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in run.model.parameters())
    assert not [name for name, module in run.model.named_modules() if "forward" in module.__dict__]
    assert {type(module) for module in run.model.modules()} == {type(module) for module in sequential.model.modules()}


def test_another_seed_gives_other_bits(sequential, tmp_path):
    assert not same(Run(tmp_path, seed=1, train=CAREFUL).weights, sequential.weights)


def test_resuming_equals_an_uninterrupted_run(trained, tmp_path):
    """To the same bits; the first stage, which is not interrupted, shows the same of the same seed."""
    name, run = trained
    resumed = Run(tmp_path, [{"name": name}], stop_at=(1, 2), train=CAREFUL)
    assert same(resumed.weights, run.weights)
    assert same(resumed.state(), run.state())
    assert [method.extra_tokens for method in resumed.made] == [method.extra_tokens for method in run.made]


def test_it_does_not_depend_on_gradient_accumulation(trained, tmp_path):
    """Not in bits: sums are taken in another order. The large epsilon keeps Adam from making much of a gradient of 0."""
    name, run = trained
    split = Run(tmp_path, [{"name": name}], train=CAREFUL, accumulation=4)
    for parameter, value in run.weights.items():
        assert torch.allclose(split.weights[parameter], value, atol=2e-6), parameter


def test_its_state_survives_a_save_and_a_load(trained):
    name, run = trained
    (method,) = make_methods([(name, {})])
    method.load_state_dict(run.made[0].state_dict())
    assert same(method.state_dict(), run.made[0].state_dict())


def test_planned_tokens_equal_computed_tokens(trained):
    """Where it can be known beforehand; nothing is planned that is not done."""
    _, run = trained
    (method,) = run.made
    assert method.planned_tokens(STEPS, LENGTH, 1) in (0.0, method.extra_tokens)


@pytest.mark.parametrize("name", METHODS)
def test_wrong_settings_are_refused_before_anything_runs(name):
    with pytest.raises(InputError, match="strengt: unknown setting; did you mean 'strength'"):
        make_methods([(name, {"strengt": 1.0})])
    with pytest.raises(InputError, match=r"strength: must be a number \(.* by default\), not 'much'"):
        make_methods([(name, {"strength": "much"})])
    with pytest.raises(InputError, match="strength: must be at least 0"):
        make_methods([(name, {"strength": -1.0})])


@pytest.mark.parametrize("name", ["a-gem", "ewc", "gem", "mas"])
def test_rows_to_measure_on_are_counted_before_anything_runs(name):
    with pytest.raises(InputError, match=rf"methods\.{name}\.samples: must be at least 1, not -1"):
        make_methods([(name, {"samples": -1})])


def small_recipe(folder, name, **changes):
    data = recipe_data(folder, methods=[{"name": name}], replay={"memory_tokens": 2000, "share": 0}, **changes)
    return parse_recipe({key: value for key, value in data.items() if value is not None})


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    for name in ("sea", "farm"):
        write_domain(folder, name, documents=12)
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_a_sharded_run_is_right_or_refused(name, cards):
    sharded = small_recipe(cards, name, train={"use_cpu": True, "fsdp": True})
    if plugin(name).supports_sharding:
        check_recipe(sharded)
    else:
        with pytest.raises(InputError, match=rf"methods\.{name}: .*FSDP"):
            check_recipe(sharded)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_needs_a_memory_says_so(name, cards):
    data = small_recipe(cards, name).to_plain()
    data.pop("replay")
    without = parse_recipe(data)
    if plugin(name).needs_memory:
        with pytest.raises(InputError, match=r"needs a memory.*replay: \{memory_tokens"):
            check_recipe(without)
    else:
        check_recipe(without)


@pytest.mark.parametrize("name", METHODS)
def test_weights_saved_inside_a_stage_are_a_stock_model(name, cards):
    infinite = small_recipe(cards, name, lr={"policy": "infinite"})
    if plugin(name).adds_parameters:
        with pytest.raises(InputError, match=rf"methods\.{name}: adds parameters.*infinite"):
            check_recipe(infinite)
    else:
        check_recipe(infinite)


def test_combined_methods_run_through_the_whole_pipeline(cards, tmp_path):
    """Every hook is wired: all methods that can stand together, at once; their cost is in the ledger."""
    together = [name for name in METHODS if not plugin(name).exclusive]
    data = recipe_data(
        cards, methods=[{"name": name, "strength": 0.5} for name in together], evaluate={"tokens": 100, "samples": 0}
    )
    data["stages"] = [{**stage, "tokens": 512} for stage in data["stages"]]
    run_recipe(parse_recipe(data), tmp_path / "run")
    last = read_records(tmp_path / "run")[-1]
    assert last.cost["methods"]["flops"] > 0
    assert (tmp_path / "run" / "stages" / last.name / "methods.safetensors").is_file()
