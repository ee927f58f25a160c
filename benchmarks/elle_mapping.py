"""ELLE's published mapping against exact growth on the same recipe: `python benchmarks/elle_mapping.py RUN`.

RUN is a finished run with a replay memory, for example of tiny/replay. The model before its last stage grows as the
recipe tiny/elle-published says for that stage, once by each mapping, and recovers on the memory (plain training, as in
the recipe). Given: the loss on the domains met so far before, right after, and on the way; and the tokens until it
is where it was before the growth. Medians over seeds of the growth and of the order.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lifelong.evaluate.perplexity import evaluate_domain
from lifelong.expand import grow, plan_expansion
from lifelong.ledger.ledger import read_records
from lifelong.lm.checkpoint import load_model
from lifelong.recipe import load_recipe
from lifelong.recipe.files import read_recipe_file
from lifelong.replay.dataset import StageDataset
from lifelong.replay.memory import ReplayMemory
from lifelong.stream.collator import Collator
from lifelong.stream.heldout import Heldout
from lifelong.stream.tokenizers.load import load_tokenizer
from lifelong.train.arguments import training_arguments
from lifelong.train.phase import TrainingInputs
from lifelong.train.stage_trainer import run_training_phase

ROWS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/elle_mapping.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {mode: [recovery(options, mode, seed) for seed in range(options.seeds)] for mode in ("exact", "elle")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1))
    print("| mapping | before | right after | after 2 steps | after 10 | after the last | tokens to recover |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for mode, runs in found.items():
        shown = [statistics.median(run[key] for run in runs) for key in ("before", "after", "2", "10", "last")]
        tokens = statistics.median(run["tokens_to_recover"] for run in runs)
        reached = f"{tokens:,.0f}" if math.isfinite(tokens) else f"more than {runs[0]['tokens']:,}"
        print(f"| {mode} | " + " | ".join(f"{value:.3f}" for value in shown) + f" | {reached} |")


def recovery(options: Any, mode: str, seed: int) -> dict[str, float]:
    """Losses before and after one growth and through its recovery, in nats per token over the domains met so far."""
    run: Path = options.run
    recipe, records = read_recipe_file(run), [record for record in read_records(run) if record.index >= 0]
    before = records[-2]
    folder = run / "stages" / before.name / "model"
    model, tokenizer = load_model(folder, recipe.objective), load_tokenizer(folder)
    expand = load_recipe("tiny/elle-published").stages[records[-1].index].expand
    assert expand is not None, "the last stage of the recipe grows"
    heldouts = [Heldout.open(run / "heldout" / record.domain) for record in records[:-1]]
    collator = Collator.for_tokenizer(tokenizer, recipe.objective, recipe.sequence_length, seed)

    def nats(shown: Any) -> float:
        length, pad = recipe.sequence_length, collator.pad_id
        losses = [
            evaluate_domain(shown, h, objective=recipe.objective, sequence_length=length, pad_id=pad, mask_id=None)
            for h in heldouts
        ]
        return statistics.fmean(loss.nats_per_token for loss in losses)

    start = nats(model)
    grown, _, _ = grow(model, plan_expansion(model.config, mode=mode, seed=seed, **expand.sizes()), seed=seed)
    curve = {0: nats(grown)}

    def probe(step: int, _: int) -> tuple[()]:
        if step in (0, 2, 10, options.steps) or step % options.every == 0:
            training = grown.training
            curve[step] = nats(grown)
            grown.train(training)
        return ()

    (generation,) = (run / "memory").iterdir()
    dataset = StageDataset(
        None,
        ReplayMemory.open(generation),
        num_steps=options.steps,
        blocks_per_step=ROWS,
        seed=seed,
        weights={record.domain: 1.0 for record in records[:-1]},
    )
    section = {**recipe.train, "per_device_train_batch_size": ROWS, "use_cpu": True}
    with TemporaryDirectory() as scratch:
        arguments = training_arguments(section, output_dir=Path(scratch), max_steps=options.steps, seed=seed)
        phase = TrainingInputs(
            "recover", dataset, collator, recipe.objective, ROWS * recipe.sequence_length, probe=probe
        )
        run_training_phase(grown, arguments, phase)
    steps = [step for step, value in sorted(curve.items()) if value <= start + 1e-6]
    per_step = ROWS * recipe.sequence_length
    return {
        "before": start,
        "after": curve[0],
        "2": curve[2],
        "10": curve[10],
        "last": curve[options.steps],
        "tokens_to_recover": steps[0] * per_step if steps else math.inf,
        "tokens": options.steps * per_step,
    }


if __name__ == "__main__":
    main()
