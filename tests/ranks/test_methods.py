"""Laws of every method file in two processes: the same weights and the same cost as in one, or a reason.

The processes start once for all methods. Adam's large epsilon keeps it from making much of a gradient of 0.
"""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lifelong.plugins import plugin_names
from tests.laws.stages import Run
from tests.ranks.launches import ROOT

METHODS = plugin_names("lifelong.methods")
CAREFUL = {"adam_epsilon": 1e-2}

WORKER = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from lifelong import ranks
from tests.laws.stages import Run
from tests.ranks.test_methods import CAREFUL, METHODS, of_run

torch.set_num_threads(1)
ranks.connect()
for name in METHODS:
    folder = Path(sys.argv[1]) / name
    ranks.on_first(lambda: folder.mkdir())
    found = of_run(Run(folder, [{"name": name}], train=CAREFUL))
    save_file(found, folder / f"rank{ranks.rank()}.safetensors")
ranks.disconnect()
"""


def of_run(run):
    """Weights, states of the methods, and their cost after both stages."""
    cost = torch.tensor([method.extra_tokens for method in run.made], dtype=torch.float64)
    weights = {f"weights.{name}": value.clone().contiguous() for name, value in run.weights.items()}
    return (
        weights | {f"state.{name}": value.clone().contiguous() for name, value in run.state().items()} | {"cost": cost}
    )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Results of all methods, by rank."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = folder / "worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_give_what_one_gives(two_processes, name, tmp_path):
    alone = of_run(Run(tmp_path, [{"name": name}], train=CAREFUL))
    for rank in range(2):
        found = load_file(two_processes / name / f"rank{rank}.safetensors")
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            scale = float(value.abs().max()) if value.numel() else 0.0
            assert torch.allclose(found[key], value, rtol=1e-4, atol=2e-6 * max(1.0, scale)), (rank, key)


def test_the_processes_do_not_differ_between_themselves(two_processes):
    """A method that lets them drift apart would train as many models."""
    for name in METHODS:
        one, other = (load_file(two_processes / name / f"rank{rank}.safetensors") for rank in range(2))
        assert all(torch.equal(one[key], other[key]) for key in one), name
