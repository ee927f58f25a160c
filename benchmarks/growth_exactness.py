"""Family x axis: how far the function moves, and whether what is new learns.

Small models of every family, with epsilon 1e-3 and random gains and biases (a small epsilon and unit gains hide
faults), are saved, grown from folder to folder, read back, and compared in true float64 and in float32. The last
column trains the model grown on all axes at once for two steps of SGD, and counts new entries that had a gradient.

    python -m benchmarks.growth_exactness [--families NAME ...] [--out benchmarks/out/growth_exactness.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from lifelong.expand import expand_checkpoint, grow, plan_expansion
from lifelong.plugins import plugin_names
from tests.expand.models import batch, shapes, tiny

GROUPS = {
    "width": ("hidden_size",),
    "FFN": ("intermediate_size",),
    "heads": ("heads", "kv_heads"),
    "to MHA": ("kv_heads",),
    "head size": ("head_dim",),
    "layers": ("layers",),
    "tokens, positions": ("vocab_size", "positions"),
    "experts": ("experts",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", help="default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/growth_exactness.json"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    table = {}
    columns = [*GROUPS, "all"]
    print("float64 / float32; worst of the shapes of a kind\n")
    print("| family | " + " | ".join(columns) + " | new entries alive |")
    print("|---" * (len(columns) + 2) + "|")
    for family in options.families or plugin_names("lifelong.expand.families"):
        row = differences(family)
        new, alive = alive_after_two_steps(family)
        table[family] = {**row, "new_entries": new, "alive": alive}
        cells = [f"{row[c][0]:.0e} / {row[c][1]:.0e}" if c in row else "-" for c in columns]
        print(f"| {family} | " + " | ".join(cells) + f" | {alive:,} of {new:,} |", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(table, indent=1) + "\n")


def differences(family: str) -> dict[str, tuple[float, float]]:
    """Largest logit differences (float64, float32) by kind of growth, after the result was read back."""
    found: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        tiny(family).save_pretrained(f"{name}/small")
        for number, shape in enumerate(shapes(family)):
            report = expand_checkpoint(f"{name}/small", Path(name) / str(number), targets=shape)
            kind = kind_of(shape)
            before = found.get(kind, (0.0, 0.0))
            measured = (report.max_logit_difference_float64, report.max_logit_difference_float32)
            found[kind] = (max(before[0], measured[0]), max(before[1], measured[1]))
    return found


def kind_of(shape: dict[str, int]) -> str:
    """The column of a shape; `all` where several kinds are in it."""
    if "hidden_size" in shape and "layers" not in shape:
        return "width"
    return next((kind for kind, axes in GROUPS.items() if set(shape) == set(axes)), "all")


def alive_after_two_steps(family: str) -> tuple[int, int]:
    """New entries, and those of them with a gradient before, after one or after two steps of SGD.

    Rows of tokens and positions that do not occur are left out.
    """
    shape = {axis: size for axis, size in shapes(family)[-1].items() if axis not in ("vocab_size", "experts")}
    model = tiny(family).double()
    grown, mapping, _ = grow(model, plan_expansion(model.config, **shape))
    parameters: dict[str, Any] = dict(grown.named_parameters())
    rows = {name for name, tensor in mapping.tensors.items() if {"vocab", "positions"} & set(tensor.axes)}
    new = {name: mask for name, mask in mapping.masks() if name in parameters and name not in rows}
    alive = {name: torch.zeros_like(mask) for name, mask in new.items()}
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.01)
    for seed in range(3):
        optimizer.zero_grad()
        grown(**batch(grown, count=6, length=48, seed=seed)).loss.backward()
        for name in alive:
            if (gradient := parameters[name].grad) is not None:
                alive[name] |= (gradient != 0) & new[name]
        optimizer.step()
    return sum(int(mask.sum()) for mask in new.values()), sum(int(seen.sum()) for seen in alive.values())


if __name__ == "__main__":
    main()
