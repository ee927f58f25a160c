"""Laws that hold for every method file, without naming any.

A method that cannot do without something says so by a class attribute (`needs_memory`, `alone`), never by its name.
"""

import pytest
import torch
from safetensors.torch import load_file

from lifelong.checkpoint import load_model
from lifelong.errors import InputError, Interrupted
from lifelong.ledger import read_records
from lifelong.pipeline import check_recipe, run_recipe
from lifelong.plugins import load_plugin, plugin_names
from lifelong.recipe import parse_recipe
from lifelong.records import RunObserver
from lifelong.stage_methods import method_tokens
from lifelong.train.method import make_methods
from tests.pipeline_runs import recipe_data, write_domain

METHODS = plugin_names("lifelong.methods")
GROWTH = {"layers": 3, "intermediate_size": 32}
TRAIN = {"learning_rate": 3e-3, "per_device_train_batch_size": 4, "logging_steps": 1, "use_cpu": True}


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    for name in ("sea", "farm"):
        write_domain(folder, name, documents=20)
    return folder


def recipe(cards, methods, **changes):
    """Two stages of four steps, the second grows."""
    data = recipe_data(
        cards,
        model={"family": "llama", "layers": 2, "hidden_size": 16, "heads": 2, "intermediate_size": 24},
        replay={"memory_tokens": 600, "share": 0},
        train=TRAIN,
        evaluate={"tokens": 100, "samples": 0},
        methods=methods,
    )
    data["stages"] = [{**stage, "tokens": 512} for stage in data["stages"]]
    data["stages"][1]["expand"] = GROWTH
    data.pop("inherit")
    return parse_recipe({**data, **changes})


class StopsInTheMiddle(RunObserver):
    """Asks to stop after the second step of the last stage, as a signal would."""

    def __init__(self):
        self.stage, self.steps, self.request = -1, 0, None

    def stage_started(self, index, *_):
        self.stage = index

    def stepped(self, point):
        self.steps += self.stage == 1
        if self.steps == 2:
            import signal

            signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def sequential(cards, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "sequential"
    run_recipe(recipe(cards, []), out)
    return out


@pytest.fixture(scope="module", params=METHODS)
def trained(request, cards, tmp_path_factory):
    """Name of a method and the folder of a run with it."""
    out = tmp_path_factory.mktemp("runs") / request.param
    run_recipe(recipe(cards, [{"name": request.param}]), out)
    return request.param, out


def models(out):
    return [record.fingerprints["model"] for record in read_records(out)]


def weights(out):
    return dict(load_model(last_folder(out) / "model", "clm").named_parameters())


def last_folder(out):
    return out / "stages" / read_records(out)[-1].name


def test_strength_zero_of_all_methods_is_sequential_training_bit_for_bit(cards, sequential, tmp_path):
    run_recipe(recipe(cards, [{"name": name, "strength": 0} for name in METHODS]), tmp_path / "zero")
    assert models(tmp_path / "zero") == models(sequential)


def test_with_its_default_strength_it_changes_the_last_stage(trained, sequential):
    _, out = trained
    assert models(out)[-1] != models(sequential)[-1]


def test_what_is_committed_is_a_stock_model_of_the_planned_size(trained, sequential):
    _, out = trained
    shapes = {name: p.shape for name, p in weights(out).items()}
    assert shapes == {name: p.shape for name, p in weights(sequential).items()}
    assert all(torch.isfinite(p).all() for p in weights(out).values())


def test_an_interrupted_run_that_is_resumed_is_the_same_bit_for_bit(trained, cards, tmp_path):
    """Also: the same seed gives the same bits."""
    name, out = trained
    same = recipe(cards, [{"name": name}])
    with pytest.raises(Interrupted):
        run_recipe(same, tmp_path / "resumed", StopsInTheMiddle())
    run_recipe(same, tmp_path / "resumed")
    assert models(tmp_path / "resumed") == models(out)
    assert states(tmp_path / "resumed") == states(out)


def states(out):
    path = last_folder(out) / "methods.safetensors"
    return {name: value.tolist() for name, value in load_file(path).items()} if path.exists() else {}


def test_it_does_not_depend_on_gradient_accumulation(trained, cards, tmp_path):
    """Not in bits: sums are taken in another order, and Adam makes much of a gradient near zero."""
    name, out = trained
    train = {**TRAIN, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "adam_epsilon": 1e-3}
    whole = {**TRAIN, "adam_epsilon": 1e-3}
    run_recipe(recipe(cards, [{"name": name}], train=train), tmp_path / "split")
    run_recipe(recipe(cards, [{"name": name}], train=whole), tmp_path / "whole")
    split = weights(tmp_path / "split")
    for parameter, value in weights(tmp_path / "whole").items():
        assert torch.allclose(split[parameter], value, atol=2e-5), parameter


def test_its_state_survives_a_save_and_a_load(trained):
    name, out = trained
    (method,) = make_methods([(name, {})])
    path = last_folder(out) / "methods.safetensors"
    state = {key.removeprefix("0."): value for key, value in load_file(path).items()}
    state.pop("extra_tokens")
    method.load_state_dict(state)
    again = method.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_what_it_computes_beside_training_is_paid_for(trained):
    name, out = trained
    tokens = method_tokens(last_folder(out) / "methods.safetensors")
    cost = read_records(out)[-1].cost
    assert ("methods" in str(cost)) == (tokens > 0)


@pytest.mark.parametrize("name", METHODS)
def test_its_file_is_a_dataclass_that_can_be_made_from_the_recipe(name):
    (method,) = make_methods([(name, {"strength": 0.5})])
    assert isinstance(method, load_plugin("lifelong.methods", name, kind="method").Plugin)
    assert make_methods([(name, {"strength": 0})]) == []


@pytest.mark.parametrize("name", METHODS)
def test_wrong_settings_are_refused_before_anything_runs(name):
    with pytest.raises(InputError, match="strengt'?.*no setting.*strength"):
        make_methods([(name, {"strengt": 1.0})])
    with pytest.raises(InputError, match="strength.*number"):
        make_methods([(name, {"strength": "much"})])
    with pytest.raises(InputError, match="strength"):
        make_methods([(name, {"strength": -1.0})])


@pytest.mark.parametrize("name", METHODS)
def test_a_sharded_run_is_right_or_refused(name, cards):
    plugin = load_plugin("lifelong.methods", name, kind="method").Plugin
    sharded = recipe(cards, [{"name": name}], train={**TRAIN, "fsdp": "full_shard"})
    if plugin.sharded:
        check_recipe(sharded)
    else:
        with pytest.raises(InputError, match=rf"methods\.{name}: .*FSDP"):
            check_recipe(sharded)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_needs_a_memory_says_so(name, cards):
    plugin = load_plugin("lifelong.methods", name, kind="method").Plugin
    without = recipe(cards, [{"name": name}], replay=None)
    if plugin.needs_memory:
        with pytest.raises(InputError, match=r"needs a memory.*replay: \{memory_tokens"):
            check_recipe(without)
    else:
        check_recipe(without)
