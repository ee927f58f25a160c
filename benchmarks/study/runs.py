"""Running arms, and the few figures that are kept of each run.

Every finished run is one small JSON file; a run that was interrupted goes on from its run folder. Only folders that a
later part needs are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.study.arms import RECIPES, Arm, Part
from benchmarks.study.horizon import horizons
from benchmarks.study.parts import TEACHERS


@dataclass(frozen=True)
class Task:
    """One run: an arm of a part with a seed."""

    part: str
    name: str
    arm: Arm
    seed: int
    tokens: int
    changes: tuple[str, ...]
    tested: tuple[str, ...] = ()
    merged: bool = True
    horizons: bool = False

    @property
    def slug(self) -> str:
        """File name of the run."""
        words = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in self.name)
        return f"{self.part}-{words.replace('--', '-')}-{self.seed}"


def tasks_of(part_name: str, part: Part, out: Path) -> list[Task]:
    """The runs of a part, seed by seed, so that a study that is stopped early has whole seeds."""
    from benchmarks.study.budget import arm_recipe, planned_flops, tokens_at

    table = out / f"tokens-{part_name}.json"
    out.mkdir(parents=True, exist_ok=True)
    known: dict[str, int] = json.loads(table.read_text()) if table.is_file() else {}
    budget = None
    for name, arm in part.arms.items():
        if part.horizons:
            known[name] = part.tokens
        elif name not in known:
            budget = budget or planned_flops(arm_recipe(part.reference, part.tokens, 0, part.changes))
            known[name] = tokens_at(arm, budget * arm.budget, part.tokens, part.changes)
    table.write_text(json.dumps(known, indent=1) + "\n")
    return [
        Task(part_name, name, arm, seed, known[name], part.changes, part.tested, part.merged, part.horizons)
        for seed in part.seeds
        for name, arm in part.arms.items()
    ]


def run_all(tasks: Sequence[Task], out: Path, workers: int) -> Iterator[dict[str, Any]]:
    """Run what has no figures yet; yields the figures of every run as it ends."""
    left = [task for task in tasks if not figures_file(out, task).is_file()]
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=quiet) as pool:
        for future in as_completed([pool.submit(run_one, task, out) for task in left]):
            yield future.result()


def figures_file(out: Path, task: Task) -> Path:
    """Where the figures of a run lie."""
    return out / "figures" / f"{task.slug}.json"


def run_one(task: Task, out: Path) -> dict[str, Any]:
    """One run from start to figures."""
    from benchmarks.study.budget import arm_recipe, training_flops
    from lifelong.ledger.history import read_history
    from lifelong.metrics import compute_run
    from lifelong.pipeline import run_recipe

    folder = out / "runs" / task.slug
    run_recipe(arm_recipe(task.arm, task.tokens, task.seed, task.changes), folder)
    history = read_history(folder)
    metrics = compute_run(history)
    measured = ("evaluate", "probe") if history.recipe["evaluate"]["probes"] else ("evaluate",)
    figures = {
        "part": task.part,
        "arm": task.name,
        "seed": task.seed,
        "stage_tokens": task.tokens,
        "flops": sum(training_flops(stage.cost, measured) for stage in history.stages),
        "teacher_flops": sum(
            phase["teacher_flops"]
            for stage in history.stages
            for name, phase in stage.cost.items()
            if name != "evaluate"
        ),
        "phases": _phases(history.stages),
        "seconds": metrics["total_seconds"],
        "domains": list(history.matrix.domains),
        "initial": list(history.matrix.initial),
        "nats_per_token": [list(row) for row in history.matrix.nats_per_token],
        "final_bits_per_byte": list(history.matrix.bits_per_byte[-1]),
        "metrics": {name: value for name, value in metrics.items() if value is not None},
        "replay": [dict(stage.replay) for stage in history.stages],
        "parameters": [stage.parameters for stage in history.stages],
        "growth_rise": [report.loss_difference for report in history.expansions if report is not None],
    }
    if history.recipe["evaluate"]["probes"]:
        figures["probes"] = [
            [[point.domain, point.tokens, point.nats_per_token] for point in points] for points in history.probes
        ]
    if task.tested:
        figures["tested"] = tested(folder, task.tested, task.merged)
    if task.horizons:
        figures["horizons"] = horizons(folder, history)
    path = figures_file(out, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(figures) + "\n")
    partial.replace(path)
    if not task.arm.keep:
        shutil.rmtree(folder)
    return figures


def tested(run: Path, domains: Sequence[str], merged: bool) -> dict[str, Any]:
    """Test losses, nats/token, of the base, the run's last model and its best merge, which validation text chooses."""
    from lifelong.evaluate import evaluate
    from lifelong.lineage.search import search_merge
    from lifelong.recipe.files import read_recipe_file

    def losses(model: Path, stage: str | None = None) -> dict[str, float]:
        found = evaluate(model, domains, stage=stage, split="test", **like)
        return {loss.domain: loss.nats_per_token for loss in found}

    recipe = read_recipe_file(run).to_plain()
    like = {"tokens": recipe["evaluate"]["tokens"], "sequence_length": recipe["sequence_length"]}
    found: dict[str, Any] = {"base": losses(run, "initial"), "released": losses(run)}
    if merged:
        found["weights"] = list(search_merge(run, recipe, run / "merged").best.weights)
        found["merged"] = losses(run / "merged")
    return found


def _phases(stages: Sequence[Any]) -> dict[str, float]:
    total: dict[str, float] = {}
    for stage in stages:
        for name, phase in stage.cost.items():
            total[name] = total.get(name, 0.0) + float(phase["flops"])
    return total


def quiet() -> None:
    """One thread, and nothing on the terminal but figures."""
    import torch
    import transformers
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


def prepare(out: Path, *, teachers: bool, vocab_size: int = 2048) -> None:
    """The one tokenizer of all arms, and `teachers` of the new domains; what is there already is left alone."""
    from lifelong.pipeline import run_recipe
    from lifelong.pipeline.begin import make_tokenizer
    from lifelong.recipe import load_recipe
    from lifelong.records import RunObserver
    from lifelong.stream.cards.domain import load_domain

    os.environ["STUDY"] = str(out.resolve())
    out.mkdir(parents=True, exist_ok=True)
    quiet()
    if not (out / "tokenizer").is_dir():
        training = f"tokenizer={{train: {{kind: bpe, vocab_size: {vocab_size}, max_bytes: 8M}}}}"
        recipe = load_recipe(RECIPES / "teacher.yaml", [training])
        domains = [load_domain(name) for name in ("wiki", *TEACHERS)]
        partial = out / "tokenizer.partial"
        make_tokenizer(recipe, domains, RunObserver()).save_pretrained(partial)
        partial.replace(out / "tokenizer")
    for name in TEACHERS if teachers else ():
        run_recipe(load_recipe(RECIPES / "teacher.yaml", [f"stages.1.domain={name}"]), out / "teachers" / name)
