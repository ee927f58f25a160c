"""Depth growth of a checkpoint beside mergekit's passthrough: time, memory, and what happens to the logits.

mergekit copies layers (`plain`), or copies them with output projections times zero (`zeros`: the same function, by the
user's own choice of tensors). It runs in an environment of its own, for it pins versions:

    python -m venv MK && MK/bin/pip install mergekit
    python -m benchmarks.mergekit CHECKPOINT --mergekit MK/bin/mergekit-yaml [--layers 36]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from lifelong.expand.depth import place_layers

SILENT = ("o_proj", "down_proj")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--mergekit", type=Path, help="its command mergekit-yaml")
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/mergekit.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way, verify in (("ours, --verify none", "none"), ("ours, --verify quick", "quick")):
            out = folder / verify
            command = [
                "-m",
                "lifelong",
                "expand",
                options.checkpoint,
                out,
                "--layers",
                options.layers,
                "--verify",
                verify,
            ]
            rows[way] = measured([sys.executable, *map(str, command)]) | moved(options.checkpoint, out)
        if options.mergekit is None or not options.mergekit.exists():
            print("mergekit: left out, --mergekit names no command that there is")
        else:
            for way in ("plain", "zeros"):
                file, out = folder / f"{way}.json", folder / way  # JSON is YAML
                file.write_text(json.dumps(passthrough(options.checkpoint, options.layers, silent=way == "zeros")))
                command = [str(options.mergekit), str(file), str(out)]
                rows[f"mergekit, {way}"] = measured(command) | moved(options.checkpoint, out)
    print(f"{'':24} {'wall s':>7} {'CPU s':>7} {'memory':>9} {'largest |logit difference|':>27} {'top 1':>7}")
    for way, row in rows.items():
        print(f"{way:24} {row['seconds']:7.1f} {row['cpu']:7.1f} {row['megabytes']:6.0f} MB {row['moved']:27.2g} "
              f"{row['same_first_choice']:7.1%}")  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


def passthrough(checkpoint: Path, layers: int, *, silent: bool) -> dict[str, Any]:
    """The recipe of mergekit for the layers that we would insert."""
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    zeros = {"scale": [*({"filter": name, "value": 0.0} for name in SILENT), {"value": 1.0}]}
    slices = []
    for layer in place_layers(config.num_hidden_layers, layers, "interleaved"):
        source = {"model": str(checkpoint), "layer_range": [layer.source, layer.source + 1]}
        slices.append({"sources": [source | ({"parameters": zeros} if silent and layer.inserted else {})]})
    return {"slices": slices, "merge_method": "passthrough", "dtype": "float32"}


def measured(command: list[str]) -> dict[str, float]:
    """Seconds, processor seconds and peak memory of a command, from its start to its end."""
    started = time.perf_counter()
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "megabytes": usage.ru_maxrss / 1024}


def moved(before: Path, after: Path) -> dict[str, float]:
    """Largest difference of logits on 256 random tokens, in float32, and how often the first choice stays."""
    ids_BT = torch.randint(3, 1000, (1, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old, new = (
            transformers.AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32)(ids_BT).logits
            for f in (before, after)
        )
    return {
        "moved": float((old - new).abs().max()),
        "same_first_choice": float((old.argmax(-1) == new.argmax(-1)).double().mean()),
    }


if __name__ == "__main__":
    main()
