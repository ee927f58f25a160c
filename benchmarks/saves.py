"""What a checkpoint of a phase takes from training, and what the disk takes beside it.

Tensors of the size of a model and Adam's two moments are written as Trainer writes them, and completed as a stage does:
`held` seconds until training goes on, `disk` seconds until the checkpoint is whole. With the share of the time that
saves may take, each says how often a checkpoint can be written.

    python -m benchmarks.saves [--parameters 135e6 1e9] [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from lifelong.train.resume import CheckpointWriter
from lifelong.train.stage_trainer import SAVING_SHARE, SECONDS_BETWEEN_SAVES

PIECE = 10_000_000  # parameters of a tensor


def save(folder: Path, weights: dict[str, torch.Tensor], moments: dict[int, dict[str, torch.Tensor]]) -> None:
    """Files of a checkpoint."""
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    torch.save({"state": moments, "param_groups": [{"params": list(moments)}]}, folder / "optimizer.pt")


def main() -> None:
    """Print a line a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", nargs="*", type=float, default=[135e6])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    options = parser.parse_args()
    for parameters in options.parameters:
        weights = {str(i): torch.randn(PIECE) for i in range(max(1, round(parameters / PIECE)))}
        moments = {i: {"exp_avg": one.clone(), "exp_avg_sq": one**2} for i, one in enumerate(weights.values())}
        size, held, disk = 12 * PIECE * len(weights) / 1e9, [], []
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            writer = CheckpointWriter()
            for round_ in range(options.rounds):
                started, folder = time.monotonic(), Path(name) / f"checkpoint-{round_}"
                save(folder, weights, moments)
                writer.complete(folder, {}, [], kept=1)
                held.append(time.monotonic() - started)
                writer.wait()
                disk.append(time.monotonic() - started)
            writer.close()
        beside, alone = (
            max(SECONDS_BETWEEN_SAVES, statistics.median(seconds) / SAVING_SHARE) for seconds in (held, disk)
        )
        print(
            f"{size:.2f} GB: held {statistics.median(held):.1f} s ({min(held):.1f} to {max(held):.1f}), disk "
            f"{statistics.median(disk):.1f} s ({min(disk):.1f} to {max(disk):.1f}); "
            f"a checkpoint every {beside:.0f} s, and every {alone:.0f} s if the disk were waited for",
            flush=True,
        )


if __name__ == "__main__":
    main()
