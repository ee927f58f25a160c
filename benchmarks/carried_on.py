"""What a stage hands on: the mean of its last weights against a decay, Adam's moments against fresh ones; their cost.

    python -m benchmarks.carried_on cost                                  # a step with averaging against one without
    python -m benchmarks.carried_on average --domains wiki news bio       # equal tokens; needs LIFELONG_DATA for these
    python -m benchmarks.carried_on moments --tokens 150k --seeds 2

Every arm of `average` and `moments` sees the same tokens in the same order. Printed per arm: mean nats a token of each
released model on its own stage's domain ("learned"), of the last one on all domains ("kept"), and of the training loss
over the first fifth of the later stages ("early").
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from lifelong.expand import new_config
from lifelong.ledger.history import read_history
from lifelong.methods._running_mean import StageAverage
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from lifelong.schema import parse_count

Plain = dict[str, Any]
WIDER = {"hidden_size": 96, "intermediate_size": 192, "heads": 3}
CONSTANT = {"policy": "infinite", "warmup": 0.05}
ARMS: dict[str, dict[str, Plain]] = {
    "average": {
        "infinite, decay": {"lr": {**CONSTANT, "decay": 0.2}},
        "infinite, average": {"lr": {**CONSTANT, "average": 0.2}},
        "wsd, decay": {"lr": {"policy": "wsd", "warmup": 0.05, "decay": 0.2}},
        "wsd, average": {"lr": {"policy": "wsd", "warmup": 0.05, "average": 0.2}},
        "linear decay over the stage": {"lr": {"policy": "wsd", "warmup": 0.05, "decay": 0.95}},
    },
    "moments": {
        "fresh": {"lr": {**CONSTANT, "average": 0.2}},
        "carried": {"lr": {**CONSTANT, "average": 0.2}, "carry_optimizer": True},
        "fresh, grown": {"lr": {**CONSTANT, "average": 0.2}, "grow": True},
        "carried, grown": {"lr": {**CONSTANT, "average": 0.2}, "carry_optimizer": True, "grow": True},
        "fresh, grown, new only": {"lr": {**CONSTANT, "average": 0.2}, "grow": True, "train_new": True},
    },
}


def recipe(arm: Plain, domains: list[str], tokens: int, seed: int) -> Plain:
    """A stream of the same tokens for every arm."""
    changes = {key: value for key, value in arm.items() if key not in ("grow", "train_new")}
    stages: list[Plain] = [{"domain": name, "tokens": tokens} for name in domains]
    if arm.get("grow"):
        stages[1]["expand"] = {**WIDER, **({"train": "new"} if arm.get("train_new") else {})}
    return {
        "name": "carried-on",
        "model": {"family": "llama", "layers": 2, "hidden_size": 64, "intermediate_size": 128, "heads": 2},
        "tokenizer": {"train": {"kind": "bpe", "vocab_size": 1024, "max_bytes": "1M"}},
        "sequence_length": 64,
        "stages": stages,
        "replay": {"memory_tokens": "60k", "share": 0.3, "mix": "uniform"},
        "train": {"learning_rate": 3e-3, "per_device_train_batch_size": 16, "logging_steps": 5, "use_cpu": True},
        "evaluate": {"tokens": "20k", "samples": 0},
        "seed": seed,
        **changes,
    }


def study(part: str, domains: list[str], tokens: int, seeds: int) -> list[Plain]:
    """Losses of every arm and seed; a line each as it ends."""
    rows = []
    for seed in range(seeds):
        for name, arm in ARMS[part].items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.monotonic()
                out = Path(folder) / "run"
                run_recipe(parse_recipe(recipe(arm, domains, tokens, seed)), out)
                history = read_history(out)
            nats = history.matrix.nats_per_token
            early = [
                point.loss for points in history.train[1:] for point in points if point.tokens <= tokens // 5
            ]  # right after a change of stage
            row = {
                "arm": name, "seed": seed, "learned": statistics.mean(nats[i][i] for i in range(len(domains))),
                "kept": statistics.mean(nats[-1]), "early": statistics.mean(early),
                "seconds": round(time.monotonic() - started),
            }  # fmt: skip
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def cost(repeats: int) -> list[Plain]:
    """Time that averaging adds to a training step in its window, where every step is averaged."""
    rows = []
    for layers, width, batch, length in ((2, 64, 16, 64), (6, 256, 16, 128)):
        config = new_config(
            "llama", vocab_size=4096, max_positions=256, layers=layers, hidden_size=width, heads=4,
            intermediate_size=4 * width,
        )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_config(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        ids = torch.randint(0, 4096, (batch, length))
        average = StageAverage(num_steps=repeats + 1, share=1.0)
        plain, added = [], []
        for step in range(repeats):
            started = time.perf_counter()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            plain.append(time.perf_counter() - started)
            started = time.perf_counter()
            average.running.add(model)
            added.append(time.perf_counter() - started)
            del step
        ratio = statistics.median(added) / statistics.median(plain)
        rows.append({
            "parameters": sum(p.numel() for p in model.parameters()), "tokens": batch * length,
            "averaged step over a plain one": 1 + ratio, "stage with average 20 %": 1 + 0.2 * ratio,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Run a part; print its rows and the means over seeds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["cost", *ARMS])
    parser.add_argument("--domains", nargs="+", default=["python-reference", "python-stdlib", "licences"])
    parser.add_argument("--tokens", default="150k")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "cost":
        cost(options.repeats)
        return
    tokens = parse_count(options.tokens)
    assert isinstance(tokens, int), "a number like 150k"
    rows = study(options.part, options.domains, tokens, options.seeds)
    for name in ARMS[options.part]:
        own = [row for row in rows if row["arm"] == name]
        means = {key: round(statistics.mean(row[key] for row in own), 4) for key in ("learned", "kept", "early")}
        print(json.dumps({"arm": name, "seeds": len(own), **means}))


if __name__ == "__main__":
    main()
