"""Weights in bfloat16 against float32: what a stage learns, and what a step of the optimizer takes.

    python -m benchmarks.precision curves --tokens 200k --seeds 2      # needs LIFELONG_DATA
    python -m benchmarks.precision step                                # nanoseconds a parameter

`curves`: a small model learns one domain in float32; from there every arm learns another with the same rows in the same
order. Printed per arm: held-out nats a token of the new domain and of the old one, mean over the seeds, and the largest
deviation of a seed from float32. On a processor without bfloat16 units a product is several times as slow.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from lifelong.schema import parse_count
from lifelong.train import rehearsal, stage_trainer
from lifelong.train.stochastic_adamw import StochasticAdamW

Plain = dict[str, Any]
ROUNDED = {"optim": "adamw_torch_8bit", "optim_args": "bf16_stochastic_round=True"}
# model.dtype, `train:`, whether the step is AdamW's own, which rounds to the nearest number
ARMS: dict[str, tuple[str, Plain, bool]] = {
    "float32": ("float32", {}, False),
    "bfloat16, rounded by chance": ("bfloat16", {}, False),
    "bfloat16, rounded to the nearest": ("bfloat16", {}, True),
    "float32 masters (train.bf16)": ("float32", {"bf16": True}, False),
    "bfloat16, moments in 8 bits": ("bfloat16", ROUNDED, False),
}


def recipe(domain: str, tokens: int, rate: float, seed: int, **changes: Any) -> Plain:
    """One stage; both domains are measured."""
    return {
        "name": "precision",
        "sequence_length": 64,
        "stages": [{"domain": domain, "tokens": tokens}],
        "train": {"learning_rate": rate, "per_device_train_batch_size": 8, "logging_steps": 20, "use_cpu": True},
        "evaluate": {"tokens": 5000, "samples": 0, "probes": 0},
        "seed": seed,
        **changes,
    }


@contextlib.contextmanager
def arm_of(nearest: bool) -> Iterator[None]:
    """Bfloat16 on any processor; and the step that is not recommended."""
    with contextlib.ExitStack() as patches:
        patches.enter_context(patch.object(rehearsal, "without_bfloat16_units", lambda **_: ""))
        if nearest:
            patches.enter_context(patch.object(stage_trainer, "rounding_optimizer", lambda *_: None))
        yield


def curves(options: argparse.Namespace) -> dict[str, Any]:
    old, new = options.domains
    names = [name for name in ARMS if "8 bits" not in name or importlib.util.find_spec("torchao") is not None]
    losses: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            model = {"family": "llama", "layers": 2, "hidden_size": 64, "heads": 4, "intermediate_size": 128}
            first = recipe(
                old, parse_count(options.tokens), 2e-3, seed, model=model,
                tokenizer={"train": {"kind": "bpe", "vocab_size": 1024, "max_bytes": 2_000_000}},
            )  # fmt: skip
            run_recipe(parse_recipe(first), Path(folder) / "first")
            start = Path(folder) / "first" / "stages" / f"00-{old}" / "model"
            for name in names:
                dtype, train, nearest = ARMS[name]
                data = recipe(
                    new, parse_count(options.tokens), options.rate, seed, watch=[old],
                    model={"checkpoint": str(start), "dtype": dtype},
                )  # fmt: skip
                data["train"] |= train
                started = time.monotonic()
                with arm_of(nearest):
                    result = run_recipe(parse_recipe(data), Path(folder) / f"{seed}-{name}")
                matrix = result.matrix
                loss = (matrix.nats_per_token[-1][0], matrix.watched_nats_per_token[-1][0])
                losses[name].append(loss)
                print(f"seed {seed} {name:34} new {loss[0]:.4f} old {loss[1]:.4f} {time.monotonic() - started:.0f} s",
                      flush=True)  # fmt: skip
    return {"rate": options.rate, "losses": losses}


def show(found: dict[str, Any]) -> None:
    reference = found["losses"]["float32"]
    print(
        f"\npeak learning rate {found['rate']:g}; nats a token\n| arm | new domain | old domain | largest deviation |"
    )
    for name, pairs in found["losses"].items():
        new, old = (statistics.fmean(pair[place] for pair in pairs) for place in (0, 1))
        deviation = max((pair[0] - one[0] for pair, one in zip(pairs, reference, strict=True)), key=abs)
        print(f"| {name} | {new:.4f} | {old:.4f} | {deviation:+.4f} |")


def step(options: argparse.Namespace) -> dict[str, Any]:
    """A step of ours against AdamW's, in turns."""
    size, found = options.parameters, {}
    made = {}
    for name, dtype, kind in (("AdamW float32", torch.float32, torch.optim.AdamW),
                              ("AdamW bfloat16, to the nearest", torch.bfloat16, torch.optim.AdamW),
                              ("StochasticAdamW bfloat16", torch.bfloat16, StochasticAdamW)):  # fmt: skip
        weight = torch.nn.Parameter(torch.randn(size).to(dtype))
        weight.grad = torch.randn_like(weight)
        made[name] = kind([weight], lr=1e-3)
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(options.rounds):
        for name, optimizer in made.items():
            started = time.perf_counter()
            optimizer.step()
            times[name].append(time.perf_counter() - started)
    for name, taken in times.items():
        found[name] = statistics.median(taken[1:]) / size * 1e9
        print(f"{name:34} {found[name]:.1f} ns a parameter")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["curves", "step"])
    parser.add_argument("--tokens", default="200k")
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--domains", nargs=2, default=["tinystories", "code"])
    parser.add_argument("--parameters", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = curves(options) if options.what == "curves" else step(options)
    if options.what == "curves":
        show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
