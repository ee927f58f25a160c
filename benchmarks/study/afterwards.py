"""What is measured on finished runs: the line between old and new model, and tasks with and without prompts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.study.arms import SEEDS
from benchmarks.study.parts import PARTS
from benchmarks.study.runs import quiet, tasks_of

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
TASKS = ("mnli", "hyperpartisan", "amazon-stars", "chemprot", "acl-arc")


def fronts(out: Path) -> Path:
    """Losses between the model before the last stage and after it, for every seed of `ours`."""
    from lifelong.lineage.front import interpolation_front
    from lifelong.recipe.files import read_recipe_file

    quiet()
    rows = []
    main = PARTS["main"]
    for task in tasks_of("main", replace(main, arms={"ours": main.arms["ours"]}), out):
        run = out / "runs" / task.slug
        front = interpolation_front(run, read_recipe_file(run).to_plain(), WEIGHTS)
        rows += [
            {"arm": "ours", "seed": task.seed, "weight": point.weight, "nats_per_token": dict(point.losses)}
            for point in front.points
        ]
    return write_rows(out / "figures" / "fronts.jsonl", rows)


def downstream(out: Path) -> Path:
    """Tasks of each domain after fine-tuning: without a prompt, with the domain's own, with another domain's."""
    from lifelong.evaluate.downstream import FineTuning, evaluate_tasks
    from lifelong.evaluate.task import load_task

    quiet()
    (task,) = tasks_of("prompts", PARTS["prompts"], out)
    run = out / "runs" / task.slug
    settings = FineTuning(5e-4, 4, 3, seeds=len(SEEDS), examples=200, length=64)
    prompts = next(run.glob("stages/04-*/**/prompts.safetensors"))
    rows = []
    for name in TASKS:
        (scores,) = evaluate_tasks(str(run), [load_task(name)], settings, prompts=prompts)
        rows.append(scores.to_json())
        print(name, json.dumps(rows[-1])[:400], flush=True)
    return write_rows(out / "figures" / "downstream.jsonl", rows)


STUDENT_TEXT = Path(__file__).parent / "recipes" / "cards" / "wiki-600kb.yaml"


def steps_saved(out: Path) -> Path:
    """A larger student under a small teacher at temperature 1, by `benchmarks/steps_saved.py`, for every seed."""
    rows = []
    for seed in SEEDS:
        for cached in ((), ("--cached",)):
            runs, file = out / "steps-saved" / str(seed), out / "steps-saved" / f"{seed}{''.join(cached)}.json"
            if not file.is_file():
                command = [sys.executable, "-m", "benchmarks.steps_saved", "--seed", str(seed), "--runs", str(runs)]
                command += ["--domain", str(STUDENT_TEXT), "--teacher-domain", "wiki", "--teacher-tokens", "600k"]
                command += ["--tokens", "160k", "--until", "1", "--temperature", "1", *cached]
                subprocess.run([*command, "--out", str(file)], check=True)
            found = json.loads(file.read_text())
            rows.append({key: found[key] for key in KEPT})
            rows[-1] |= {"plain": found["plain_nats"], "taught": found["taught_nats"]}
            write_rows(out / "figures" / "steps_saved.jsonl", rows)
    return out / "figures" / "steps_saved.jsonl"


KEPT = (
    "seed", "cached", "alpha", "until", "temperature", "teacher_nats", "teacher_flops", "steps", "reached_at",
    "steps_saved", "flops_saved",
)  # fmt: skip


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One JSON object a line, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    partial.replace(path)
    return path
