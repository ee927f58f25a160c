"""Avalanche's plugins, unmodified, driven from our training; and its bugs that we go around, so that a mended one shows."""

import gc
import inspect

import pytest
import torch
from torch import nn

from lifelong.errors import InputError
from lifelong.methods._avalanche import BROKEN, AvalancheMethod
from lifelong.methods._make import make_methods
from tests.laws.stages import LENGTH, Run, same

PLUGINS = {
    "EWCPlugin": {"ewc_lambda": 5.0},
    "MASPlugin": {"lambda_reg": 0.01},
    "AGEMPlugin": {"patterns_per_experience": 8, "sample_size": 4},
    "GEMPlugin": {"patterns_per_experience": 4, "memory_strength": 0.5},
}
CAREFUL = {"adam_epsilon": 1e-2}


def section(name, **more):
    return [{"name": f"avalanche:{name}", "rows": 8, **PLUGINS[name], **more}]


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def library():
    """Half a minute to import: not when tests are collected, in every process."""
    from lifelong.adapters import avalanche

    return avalanche


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("sequential"), growth=None, train=CAREFUL)


@pytest.fixture(scope="module", params=PLUGINS)
def trained(request, tmp_path_factory):
    run = Run(tmp_path_factory.mktemp(request.param), section(request.param), growth=None, train=CAREFUL)
    return request.param, run


def test_a_plugin_changes_the_second_stage_and_leaves_a_stock_model(trained, sequential):
    _, run = trained
    assert not same(run.weights, sequential.weights)
    assert run.weights.keys() == sequential.weights.keys()


def test_with_strength_zero_it_is_sequential_training(trained, sequential, tmp_path):
    name, _ = trained
    assert make_methods([(f"avalanche:{name}", {**PLUGINS[name], "strength": 0})]) == []


def test_resuming_equals_an_uninterrupted_run(trained, tmp_path):
    name, run = trained
    resumed = Run(tmp_path, section(name), stop_at=(1, 2), growth=None, train=CAREFUL)
    assert same(resumed.weights, run.weights)
    assert same(resumed.state(), run.state())


def test_it_does_not_depend_on_gradient_accumulation(trained, tmp_path):
    name, run = trained
    split = Run(tmp_path, section(name), growth=None, train=CAREFUL, accumulation=4)
    for parameter, value in run.weights.items():
        assert torch.allclose(split.weights[parameter], value, atol=2e-6), parameter


def test_its_ewc_is_ours(tmp_path):
    """Ours counts a token, theirs a row: theirs has half the tokens of a row as its factor."""
    predicted = LENGTH - 2  # two documents a row, whose first tokens nothing predicts
    theirs = Run(tmp_path / "theirs", section("EWCPlugin", ewc_lambda=predicted / 2), growth=None, train=CAREFUL)
    ours = Run(tmp_path / "ours", [{"name": "ewc", "samples": 8}], growth=None, train=CAREFUL)
    for parameter, value in ours.weights.items():
        assert torch.allclose(theirs.weights[parameter], value, atol=2e-6), parameter


def test_growth_is_refused_where_shapes_are_kept_and_fine_where_not(tmp_path):
    with pytest.raises(InputError, match=r"does not support growth.*use ewc"):
        Run(tmp_path / "ewc", section("EWCPlugin"))
    run = Run(tmp_path / "a-gem", section("AGEMPlugin"))
    assert all(torch.isfinite(value).all() for value in run.weights.values())


@pytest.mark.parametrize("name", BROKEN)
def test_broken_input_is_refused_with_the_reason(name):
    with pytest.raises(InputError, match=f"avalanche:{name}: ") as caught:
        make_methods([(f"avalanche:{name}", {})])
    assert BROKEN[name] in str(caught.value)


def test_wrong_names_and_settings_are_refused():
    with pytest.raises(InputError, match="did you mean 'EWCPlugin'"):
        make_methods([("avalanche:EWCPlugi", {})])
    with pytest.raises(InputError, match="ewc_lamda: unknown setting; did you mean 'ewc_lambda'"):
        make_methods([("avalanche:EWCPlugin", {"ewc_lamda": 1.0})])
    with pytest.raises(InputError, match="ewc_lambda: is missing; its settings: ewc_lambda, mode"):
        make_methods([("avalanche:EWCPlugin", {})])
    with pytest.raises(InputError, match="decay_factor"):
        make_methods([("avalanche:EWCPlugin", {"ewc_lambda": 1.0, "mode": "online"})])
    with pytest.raises(InputError, match=r"works through .* which only Avalanche's own training loop has"):
        make_methods([("avalanche:LRSchedulerPlugin", {"scheduler": "none"})])


def test_state_that_can_only_be_pickled_is_refused():
    class Odd:
        def __init__(self):
            self.function = lambda: None

    method = AvalancheMethod(name="Odd", plugin=Odd())
    with pytest.raises(InputError, match="keeps function as a function, which can only be pickled"):
        method.state_dict()


# --- bugs of Avalanche 0.6.0 that we go around: when one of these fails, it has been mended ------------------


def test_synaptic_intelligence_is_still_a_silent_no_op_on_a_cpu(library):
    plugin = library.plugin_classes()["SynapticIntelligencePlugin"](si_lambda=1.0)
    model = nn.Linear(3, 2)
    strategy = type("Strategy", (), {"model": model, "device": torch.device("cpu")})()
    plugin.before_training_exp(strategy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        plugin.before_training_iteration(strategy)
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        plugin.after_training_iteration(strategy)
    assert all(not way.data.any() for way in plugin.syn_data["trajectory"].values())


def test_mas_still_refuses_a_loss_of_zero(library):
    source = inspect.getsource(library.plugin_classes()["MASPlugin"].before_backward)
    assert "if not strategy.loss" in source
