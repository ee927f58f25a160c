"""Dynamic distillation beside constant and linear rates at equal FLOPs: little text, read several times.

A pre-trained model reads the same few tokens of a new domain again and again; its teacher is what it was before. Each
arm stops where the plain one has spent its FLOPs, teachers and the second reading of the student's head included.

    LIFELONG_DATA=... python -m benchmarks.dynamic_rates [--bytes 80KB] [--tokens 120k] [--seeds 2]

Printed: held-out nats per token of the new domain and of the base's own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from lifelong.ledger.history import read_history
from lifelong.pipeline import run_recipe
from lifelong.plan import plan_recipe
from lifelong.recipe import parse_recipe
from lifelong.schema import parse_count

Plain = dict[str, Any]
TAUGHT: Plain = {"teacher": "previous", "on": "new", "until": 1.0}
ARMS: dict[str, Plain | None] = {
    "plain": None,
    "constant 0.3": {**TAUGHT, "schedule": "constant", "alpha": 0.3},
    "linear 0.6": {**TAUGHT, "schedule": "linear", "alpha": 0.6},
    "linear 0.6, temperature 2": {**TAUGHT, "schedule": "linear", "alpha": 0.6, "temperature": 2.0},
    "dynamic 0.6": {**TAUGHT, "schedule": "dynamic", "alpha": 0.6},
}


def recipe(folder: Path, inherit: Plain | None, tokens: int, seed: int) -> Plain:
    """One stage on little text from the small stories model."""
    plain: Plain = {
        "name": "dynamic", "model": {"checkpoint": os.path.expandvars("$LIFELONG_DATA/models/stories260K")},
        "sequence_length": 128, "stages": [{"domain": str(folder / "news.yaml"), "tokens": tokens}],
        "watch": ["tinystories"], "evaluate": {"tokens": "20k", "samples": 0}, "seed": seed,
        "train": {"learning_rate": 1e-3, "lr_scheduler_type": "linear", "per_device_train_batch_size": 8,
                  "logging_steps": 10, "use_cpu": True},
    }  # fmt: skip
    return plain if inherit is None else {**plain, "inherit": inherit}


def equal_tokens(folder: Path, inherit: Plain | None, tokens: int) -> int:
    """Tokens for which an arm has the FLOPs of the plain one, by the plan."""
    plain, own = (plan_recipe(parse_recipe(recipe(folder, arm, tokens, 0))).stages[0].flops for arm in (None, inherit))
    return round(tokens * plain / own)


def main() -> None:
    """Every arm and seed, a line each, then the means."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bytes", default="80KB")
    parser.add_argument("--tokens", default="120k")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    tokens = parse_count(options.tokens)
    assert isinstance(tokens, int), "a number like 120k"
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        splits = {"files": "train", "valid": "valid", "test": "test"}
        files = ", ".join(f"{k}: [$LIFELONG_DATA/corpora/news.{v}.jsonl.gz]" for k, v in splits.items())
        (folder / "news.yaml").write_text(f"name: news\nsource: {{{files}}}\ntake_bytes: {options.bytes}\n")
        for seed in range(options.seeds):
            for name, inherit in ARMS.items():
                out = folder / f"{seed}-{name}"
                run_recipe(parse_recipe(recipe(folder, inherit, equal_tokens(folder, inherit, tokens), seed)), out)
                history = read_history(out)
                matrix, rates = history.matrix, [point.alpha for point in history.train[0]]
                new, base = matrix.nats_per_token[0][0], matrix.watched_nats_per_token[0][0]
                assert new is not None
                assert base is not None
                found.setdefault(name, []).append((new, base))
                print(json.dumps({
                    "arm": name, "seed": seed, "new": new, "base": base, "tokens": history.stages[0].tokens,
                    "PFLOP": sum(cost["flops"] for cost in history.stages[0].cost.values()) / 1e15,
                    "rate, first and last": [rates[0], rates[-1]],
                }), flush=True)  # fmt: skip
    for name, losses in found.items():
        new, base = (round(statistics.mean(column), 4) for column in zip(*losses, strict=True))
        print(json.dumps({"arm": name, "seeds": len(losses), "new": new, "base": base}))


if __name__ == "__main__":
    main()
