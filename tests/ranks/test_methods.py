"""Laws of every method file in two processes: the weights, the state and the cost of one.

Adam's large epsilon keeps it from making much of a gradient of 0.
"""

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks.methods import METHODS, left_behind


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_give_what_one_gives(two_processes, name, tmp_path):
    alone = left_behind(tmp_path, name)
    for rank in range(2):
        found = load_file(two_processes.methods / name / f"rank{rank}.safetensors")
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            scale = float(value.abs().max()) if value.numel() else 0.0
            assert torch.allclose(found[key], value, rtol=1e-4, atol=2e-6 * max(1.0, scale)), (rank, key)


def test_the_processes_do_not_drift_apart(two_processes):
    """A method that let them would train as many models."""
    for name in METHODS:
        one, other = (load_file(two_processes.methods / name / f"rank{rank}.safetensors") for rank in range(2))
        assert all(torch.equal(one[key], other[key]) for key in one), name
