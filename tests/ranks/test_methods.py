"""Laws of every method file in two processes: the weights, the state and the cost of one.

Adam's large epsilon keeps it from making much of a gradient of 0.
"""

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks.launches import Job, launch
from tests.ranks.methods import FEW, METHODS, left_behind


def same_as_alone(methods, name, folder):
    """What both processes left is what one leaves."""
    alone = left_behind(folder, name)
    for rank in range(2):
        found = load_file(methods / name / f"rank{rank}.safetensors")
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            scale = float(value.abs().max()) if value.numel() else 0.0
            assert torch.allclose(found[key], value, rtol=1e-4, atol=2e-6 * max(1.0, scale)), (rank, key)


def do_not_drift_apart(methods, name):
    """A method that let the processes do so would train as many models."""
    one, other = (load_file(methods / name / f"rank{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one), name


@pytest.mark.parametrize("name", FEW)
def test_two_processes_give_what_one_gives(two_processes, name, tmp_path):
    same_as_alone(two_processes.methods, name, tmp_path)
    do_not_drift_apart(two_processes.methods, name)


@pytest.mark.slow
def test_two_processes_give_what_one_gives_with_every_method(tmp_path):
    names = [name for name in METHODS if name not in FEW]
    ended = launch(2, [Job.of_methods(tmp_path / "two", names)], tmp_path)
    assert ended.exit_code == 0, ended.stderr
    for name in names:
        same_as_alone(tmp_path / "two", name, tmp_path / "one" / name)
        do_not_drift_apart(tmp_path / "two", name)
