"""A picture from a real model: SmolLM2-135M-Instruct on three corpora, $SMOLLM2 names its folder.

A second of one core is 43 tokens of training here, so that text is short, and everything that is measured after the
runs is kept model by model: a call that is stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.study.arms import Arm, Part

WATCHED, LEARNED = ("wiki", "code", "news"), ("legal", "bio", "cs")
TEST_TOKENS, VALID_TOKENS = 900, 140
WEIGHTS = (1.0, 0.75, 0.5, 0.25)
"""Of the stages in a merge, all alike: the search over each of them would take an hour a run."""
MERGED = ("sequential",)

STORED = "inherit={teacher: memory, on: replay, alpha: 1.0, schedule: constant, temperature: 1.0}"


def arm(*changes: str) -> Arm:
    """The real model through its three corpora."""
    return Arm("real-model", changes, keep=True)


REAL_MODEL = Part(
    {
        "sequential": arm(),
        "sequential, rate 1e-4": arm("train.learning_rate=1e-4"),
        "self-generated .5": arm(
            "replay={memory_tokens: 0, share: 0.5, generate: {tokens: 1024, length: 512, start: wiki}}", STORED
        ),
        "wiki in place of old text .5": arm("replay={memory_tokens: 6k, share: 0.5, proxy: {wiki: 2k}}"),
        "KI on the new text, alpha .5": arm(
            "inherit={teacher: previous, on: all, alpha: 0.5, schedule: constant, temperature: 1.0}"
        ),
        "LoRA, rank 8, rate 2e-3": arm("methods=[{name: lora}]", "train.learning_rate=2e-3"),
    },
    seeds=(0,),
    reference=Arm("real-model"),
    tokens=4_096,
)


def look(out: Path) -> None:
    """Test losses and chat answers of the base, of every run's last model, and of the best merge of some."""
    base: dict[str, Any] = {}
    for kind in ("base", "released", "merged"):
        for path in sorted((out / "figures").glob("real-model-*.json")):
            row = json.loads(path.read_text())
            run, tested = out / "runs" / path.stem, row.setdefault("tested", {})
            if kind in tested or not run.is_dir() or (kind == "merged" and row["arm"] not in MERGED):
                base = base or tested.get("base", {})
                continue
            if kind == "base":
                tested[kind] = base = base or measured(os.environ["SMOLLM2"])
            elif kind == "released":
                tested[kind] = measured(str(next(run.glob("stages/02-*/model"))))
            else:
                tested[kind] = {"weight": best_weight(run), **measured(str(run / "merged"))}
                shutil.rmtree(run / "merged")
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(row) + "\n")
            partial.replace(path)
            print(kind, row["arm"], json.dumps(tested[kind]), flush=True)


def measured(folder: str) -> dict[str, Any]:
    """Nats per token of all domains on their test splits, and how many chat answers keep which rule."""
    from lifelong.evaluate import evaluate
    from lifelong.evaluate.chat import answer_prompts
    from lifelong.lm.checkpoint import load_model
    from lifelong.stream.tokenizers.load import load_tokenizer

    found = evaluate(folder, (*WATCHED, *LEARNED), tokens=TEST_TOKENS, sequence_length=256, split="test")
    answers = answer_prompts(load_model(folder, "clm"), load_tokenizer(os.environ["SMOLLM2"]), stage=-1)
    return {"nats": {loss.domain: loss.nats_per_token for loss in found}, "chat": answers.rates}


def best_weight(run: Path) -> float:
    """The weight with the smallest mean validation loss; its model is written to `merged` in the run."""
    import torch

    from lifelong.evaluate import evaluate
    from lifelong.evaluate.source import find_source
    from lifelong.lineage.search import stage_deltas
    from lifelong.lm.checkpoint import load_model, save_model
    from lifelong.recipe.files import read_recipe_file
    from lifelong.stream.tokenizers.load import load_tokenizer

    newest = find_source(run).weights
    parts, model = stage_deltas(run, read_recipe_file(run).to_plain()), load_model(newest, "clm")
    parameters = dict(model.named_parameters(remove_duplicate=False))

    def put(weight: float) -> None:
        with torch.no_grad():
            for name, value in parts.at((weight,) * len(parts.stages)).items():
                parameters[name].copy_(value)
        model.tie_weights()
        shutil.rmtree(run / "merged", ignore_errors=True)
        save_model(model, load_tokenizer(newest), run / "merged")

    means = {}
    for weight in WEIGHTS:
        put(weight)
        losses = evaluate(run / "merged", (*WATCHED, *LEARNED), tokens=VALID_TOKENS, sequence_length=256, split="valid")
        means[weight] = sum(loss.nats_per_token for loss in losses) / len(losses)
    best = min(means, key=means.__getitem__)
    put(best)
    return best


# --- the page -------------------------------------------------------------------------------------------------


HEADS = [
    "model", *(f"{domain} (watched)" for domain in WATCHED), *LEARNED, "mean of all",
    "stops", "keeps the format", "in the language", "TFLOP",
]  # fmt: skip


def table_rows(rows: Mapping[str, Any]) -> Iterator[list[str]]:
    """The base, every arm as released, and the merges: test losses, rises of what is watched, answers."""
    base: dict[str, Any] = {}
    runs = [(name, row) for name, found in rows.items() for row in found]
    several = len({row["seed"] for _, row in runs}) > 1
    for kind in ("base", "released", "merged"):
        for name, row in runs:
            found = row.get("tested", {}).get(kind)
            if found is None or (kind == "base" and base):
                continue
            if kind == "base":
                base = found
            label = {"base": "the base", "released": f"`{name}`"}.get(kind) or (
                f"`{name}`, {found['weight']:g} of the way from the base"
            )
            nats, chat = found["nats"], found["chat"]
            if several and kind != "base":
                label += f", seed {row['seed']}"
            cells = [label]
            cells += [
                f"{nats[domain]:.3f}" if kind == "base" else f"{nats[domain] - base['nats'][domain]:+.3f}"
                for domain in WATCHED
            ]
            cells += [f"{nats[domain]:.3f}" for domain in LEARNED]
            cells += [f"{sum(nats.values()) / len(nats):.3f}"]
            cells += [f"{passed}/{asked}" for passed, asked in chat.values()]
            yield [*cells, "" if kind == "base" else f"{row['flops'] / 1e12:.2f}"]
