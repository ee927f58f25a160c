"""Losses and hashes of a small run, with the versions and the processor that the hashes hold for.

python -m tests.trajectories.golden        # after a change that is meant to change figures: say so in CHANGELOG.md
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.trajectories.runs import hashes

CASES = ("grow",)
GOLDEN = Path(__file__).with_name("golden.json")


def holds_for() -> dict[str, Any]:
    """What decides the bits of a run beside the code."""
    import torch

    from lifelong.pipeline.environment import installed

    packages = ("torch", "transformers", "tokenizers", "accelerate", "safetensors", "datasets", "numpy")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "packages": installed(packages),
    }


def recorded(folder: Path) -> dict[str, Any]:
    """Hashes and losses of the run, made in an empty folder."""
    from lifelong.ledger.ledger import read_records

    files = hashes(folder, *CASES)
    rows = {
        name: [{domain: row["nats_per_token"] for domain, row in record.row.items()} for record in read_records(out)]
        for name in files
        if (out := folder / "runs" / name)
    }
    return {"holds_for": holds_for(), "hashes": files, "nats_per_token": rows}


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # as in the tests: nothing is asked of the hub
    with tempfile.TemporaryDirectory() as temporary:
        found = recorded(Path(temporary))
    GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"written: {GOLDEN}\n")
