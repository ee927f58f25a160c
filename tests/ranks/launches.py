"""Runs of one small recipe in several processes, and what two of them have in common."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.pipeline_runs import recipe_data, write_domain
from tests.ranks.worker import DIED

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "worker.py"
MODES = {"ddp": [], "fsdp2": ["--fsdp2"], "fsdp2+offload": ["--offload"]}


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Two stages with growth, inheritance, recovery, replay, probes and a checkpoint every third step."""
    for name in ("sea", "farm"):
        write_domain(folder, name, documents=30)
    data = recipe_data(folder, recover={"tokens": 512}, **changes)
    data["evaluate"] = {"tokens": 600, "probes": 3, "probe_tokens": 200, "samples": 1}
    data["train"] = {
        **data["train"], "use_cpu": False, "logging_steps": 1, "save_strategy": "steps", "save_steps": 3,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@dataclass(frozen=True)
class Launch:
    """How a launch ended; `ended_after` counts the seconds from the death of a process to that of the launcher."""

    exit_code: int
    seconds: float
    stderr: str
    ended_after: float | None = None

    @property
    def told(self) -> list[str]:
        """Messages of the run, without those of the launcher."""
        return [line for line in self.stderr.splitlines() if line.startswith(("error: ", "interrupted: "))]


def launch(
    recipe: Path, out: Path, processes: int, mode: str = "ddp", *, die: tuple[int, int] | None = None,
    order: Path | None = None, arguments: tuple[str, ...] = (), module: bool = False,
) -> Launch:  # fmt: skip
    """Run a recipe in so many processes.

    Args:
        recipe: to run.
        out: run folder.
        processes: 1 is a plain process.
        mode: one of `MODES`.
        die: rank and step of the second stage at which that process is killed.
        order: folder for the sequences of every step.
        arguments: more of the command line.
        module: start `-m lifelong` itself, without watching.
    """
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    watched = [str(WORKER), *MODES[mode]]
    watched += ["--die", f"{die[0]},{die[1]}"] if die else []
    watched += ["--order", str(order)] if order else []
    command = [*launcher, *(["-m", "lifelong"] if module else watched)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    started = time.monotonic()
    done = subprocess.run(
        [*command, "run", str(recipe), "--out", str(out), "--json", *arguments],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=1200, check=False,
    )  # fmt: skip
    ended, seconds = time.time(), time.monotonic() - started
    died = order / DIED if die and order else None
    after = ended - float(died.read_text()) if died is not None and died.is_file() else None
    return Launch(done.returncode, seconds, done.stderr, after)


def order_hash(folder: Path) -> str:
    """Of the sequences of every step, whichever process had them."""
    steps: dict[str, set[str]] = defaultdict(set)
    for path in folder.glob("*.txt"):
        for line in path.read_text().splitlines():
            step, *rows = line.split()
            steps[step] |= set(rows)
    content = json.dumps({step: sorted(rows) for step, rows in sorted(steps.items())})
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Difference:
    """The largest differences of two runs: of the loss curve, of probes, and of the final evaluation in nats."""

    loss: float
    probe: float
    evaluation: float
    same_replay: bool
    same_cost: bool


def difference(one: Path, other: Path) -> Difference:
    """What two finished run folders do not have in common."""
    rows = [json.loads((out / "report" / "matrix.json").read_text()) for out in (one, other)]
    points: dict[str, list[list[Any]]] = {"train": [], "probes": []}
    for out in (one, other):
        histories = [json.loads((stage / "history.json").read_text()) for stage in sorted((out / "stages").iterdir())]
        for kind, found in points.items():
            found.append([point for history in histories for point in history[kind]])
    assert all(len(a) == len(b) > 0 for a, b in points.values()), "curves of different length"
    train, probes = points["train"], points["probes"]
    losses = [abs(a[key] - b[key]) for a, b in zip(*train, strict=True) for key in ("loss", "ce")]
    probed = [abs(a["nats_per_token"] - b["nats_per_token"]) for a, b in zip(*probes, strict=True)]
    final = [abs(a - b) for a, b in zip(rows[0]["nats_per_token"][-1], rows[1]["nats_per_token"][-1], strict=True)]
    same_rows = all(a["replay_tokens"] == b["replay_tokens"] for a, b in zip(*train, strict=True))
    costs = [{key: row["cost"][key] for key in ("tokens", "flops", "teacher_flops")} for row in rows]
    return Difference(
        max(losses), max(probed), max(final), same_rows and rows[0]["replay"] == rows[1]["replay"], costs[0] == costs[1]
    )
