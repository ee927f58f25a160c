"""Federated silos against the same tokens trained in one place, and against every silo alone.

Three domains, one per silo; the same initial weights, tokenizer, tokens and learning rate everywhere. The federations
run in this process with Flower's strategies (see `lifelong.federation.simulate_federation`). Reported is the held-out
loss of every domain at the end.

    LIFELONG_DATA=... python -m benchmarks.federated [--forms central,h10,h50,...] [--seeds 1]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lifelong.evaluate.cards import evaluate_cards
from lifelong.federation.server import FederationPlan, simulate_federation
from lifelong.ledger.history import read_history
from lifelong.pipeline import run_recipe
from lifelong.recipe import Recipe, parse_recipe

DOMAINS = ("wiki", "bio", "code")
SEQUENCE, BATCH = 128, 8
HELDOUT = 10_000


def recipe(options: argparse.Namespace, seed: int, domains: tuple[str, ...], steps: int, batch: int = BATCH) -> Recipe:
    """One stage on the domains, `steps` optimizer steps of `batch` rows."""
    return parse_recipe({
        "name": "federated",
        "model": {"family": "llama", "layers": 2, "hidden_size": 64, "heads": 2},
        "tokenizer": {"checkpoint": options.tokenizer},
        "sequence_length": SEQUENCE,
        "stages": [
            {"domain": domains[0], "together_with": domains[1:], "tokens": steps * batch * SEQUENCE}
        ],
        "train": {
            "learning_rate": options.learning_rate, "warmup_steps": 0.1, "per_device_train_batch_size": batch,
            "logging_steps": 50, "use_cpu": True,
        },
        "evaluate": {"tokens": HELDOUT, "samples": 0},
        "seed": seed,
    })  # fmt: skip


def central(options: argparse.Namespace, seed: int, out: Path, *, batch: int) -> dict[str, Any]:
    """All text in one place."""
    steps = 3 * options.steps * BATCH // batch
    run_recipe(recipe(options, seed, DOMAINS, steps, batch), out)
    return outcome(out) | {"nats": all_domains(out)}


def federated(
    options: argparse.Namespace, seed: int, out: Path, *, away: tuple[float, float] | None = None, **plan: Any
) -> dict[str, Any]:
    """One silo per domain; `away`: the part of the rounds in which the second silo is dead."""
    made, whole = FederationPlan(**plan), recipe(options, seed, DOMAINS, 3 * options.steps)
    rounds = made.rounds(whole)

    def absent(domain: str, number: int) -> bool:
        return away is not None and domain == DOMAINS[1] and away[0] * rounds < number <= away[1] * rounds

    simulate_federation(whole, DOMAINS, out, made, absent)
    return outcome(out / "server") | {"rounds": rounds}


def alone(options: argparse.Namespace, seed: int, out: Path, *, domain: str) -> dict[str, Any]:
    """A silo that shares nothing: its own text, as many steps as in a federation."""
    run_recipe(recipe(options, seed, (domain,), options.steps), out)
    return outcome(out) | {"nats": all_domains(out)}


def all_domains(out: Path) -> dict[str, float]:
    """Held-out loss of a run's last model on every domain, on the documents that the silos use too."""
    losses = evaluate_cards(str(out), DOMAINS, tokens=HELDOUT, sequence_length=SEQUENCE, objective="clm", split="valid")
    return {loss.domain: loss.nats_per_token for loss in losses}


def outcome(out: Path) -> dict[str, Any]:
    """Held-out losses at the end, and what they cost."""
    history = read_history(out)
    nats = dict(zip(history.matrix.domains, history.matrix.nats_per_token[-1], strict=True))
    return {"nats": nats, "tokens": history.stages[-1].tokens, "notes": history.stages[-1].notes}


FORMS: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any]]] = {
    "central": (central, {"batch": BATCH}),
    "h10": (federated, {"local_steps": 10}),
    "h50": (federated, {"local_steps": 50}),
    **{f"alone-{domain}": (alone, {"domain": domain}) for domain in DOMAINS},
    "h10-dying": (federated, {"local_steps": 10, "away": (0.33, 0.67)}),
    "central-wide": (central, {"batch": 3 * BATCH}),
    "h10-reset": (federated, {"local_steps": 10, "moments": "reset"}),
    "h10-momentum": (
        federated,
        {"local_steps": 10, "strategy": "fedavgm", "options": {"server_momentum": 0.5, "server_learning_rate": 1.0}},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--steps", type=int, default=100, help="of each silo")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tokenizer", default=os.environ.get("LIFELONG_DATA", "") + "/tokenizers/bpe4k-public")
    parser.add_argument("--runs", type=Path, default=Path("runs/federated"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/federated.json"))
    options = parser.parse_args()
    if not os.environ.get("LIFELONG_DATA"):
        print("left out: set LIFELONG_DATA to the folder of the corpora")
        return
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    print(f"{'':<16}{''.join(f'{domain:>9}' for domain in DOMAINS)}{'mean':>9}{'tokens':>10}  nats per held-out token")
    for seed in range(options.seeds):
        for name in options.forms.split(","):
            measure, settings = FORMS[name]
            found = measure(options, seed, options.runs / f"{name}-{seed}", **settings)
            results[f"{name}-{seed}"] = found
            options.out.write_text(json.dumps(results, indent=1))
            nats = [found["nats"][domain] for domain in DOMAINS]
            print(
                f"{name:<16}{''.join(f'{value:9.4f}' for value in nats)}{sum(nats) / len(nats):9.4f}"
                f"{found['tokens']:10,}  {'; '.join(found['notes'])}",
                flush=True,
            )


if __name__ == "__main__":
    main()
