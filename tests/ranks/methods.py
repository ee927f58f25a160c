"""Two small stages with every method file, in as many processes as there are."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from lifelong import distributed
from lifelong.plugins import plugin_names
from tests.laws.stages import Run

METHODS = plugin_names("lifelong.methods")
FEW = METHODS[::4]
"""Those of the default run: every one takes both processes some seconds."""
CAREFUL = {"adam_epsilon": 1e-2}


def run_methods(folder: Path, names: Sequence[str]) -> None:
    """What each of these methods leaves behind in this process, in a file of its own."""
    for name in names:
        work = folder / name
        distributed.run_on_main_process(lambda work=work: work.mkdir(parents=True))
        save_file(left_behind(work, name), work / f"rank{distributed.rank()}.safetensors")


def left_behind(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Weights, state of the method, and its cost after both stages."""
    run = Run(folder, [{"name": name}], train=CAREFUL)
    cost = torch.tensor([method.extra_tokens for method in run.made], dtype=torch.float64)
    parts = {"weights": run.weights, "state": run.state()}
    found = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
    return {key: value.clone().contiguous() for key, value in found.items()} | {"cost": cost}
