"""Runs of small recipes in several processes, and what two of them have in common."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.ranks.worker import DIED
from tests.support import recipe_data, write_domain

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "worker.py"
UNTIED_BERT = {
    "model": {
        "family": "bert", "layers": 1, "hidden_size": 24, "heads": 2, "intermediate_size": 40,
        "config": {"tie_word_embeddings": False, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    },
    "objective": "mlm",
    "growth": {"layers": 2},
}  # fmt: skip


def write_recipe(folder: Path, name: str = "recipe", **changes: Any) -> Path:
    """Two stages with growth, inheritance, recovery, replay, probes and a checkpoint every third step."""
    for domain in ("sea", "farm"):
        if not (folder / f"{domain}.yaml").exists():
            write_domain(folder, domain, documents=30)
    growth = changes.pop("growth", None)
    data = recipe_data(folder, **{"recover": {"tokens": 512}, **changes})
    data["stages"][1]["expand"] = growth or data["stages"][1]["expand"]
    data["evaluate"] = {"tokens": 600, "probes": 3, "probe_tokens": 200, "samples": 1}
    data["train"] = {
        **data["train"], "use_cpu": False, "logging_steps": 1, "save_strategy": "steps", "save_steps": 3,
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@dataclass(frozen=True)
class Job:
    """One run of a launch; see `tests/ranks/worker.py`."""

    recipe: str
    out: str
    order: str
    mode: str = "ddp"
    die: tuple[int, int] | None = None
    methods: str | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of_methods(cls, folder: Path, names: Sequence[str]) -> Job:
        """These method files, through two stages without a pipeline."""
        return cls("", "", "", methods=str(folder), names=tuple(names))

    @classmethod
    def at(cls, recipe: Path, out: Path, mode: str = "ddp", die: tuple[int, int] | None = None) -> Job:
        """With the order of the sequences beside the run folder."""
        return cls(str(recipe), str(out), str(order_of(out)), mode, die)


def order_of(out: Path) -> Path:
    """Where the order of the sequences of a run is kept."""
    return out.with_name(f"{out.name}-order")


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


def launch(processes: int, jobs: Sequence[Job], folder: Path) -> Launch:
    """Do runs in so many processes, one after the other."""
    listed = folder / f"jobs-{processes}-{time.monotonic_ns()}.json"
    listed.write_text(json.dumps([asdict(job) for job in jobs]))
    done = start(processes, [str(WORKER), str(listed)])
    died = Path(jobs[-1].order) / DIED if jobs[-1].die else None
    after = time.time() - float(died.read_text()) if died is not None and died.is_file() else None
    return Launch(done.exit_code, done.seconds, done.stderr, after)


def start(processes: int, arguments: Sequence[str]) -> Launch:
    """The launcher with these arguments; a plain Python for one process."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(several if processes > 1 else []), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    started = time.monotonic()
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=3600,
        check=False,
    )
    return Launch(done.returncode, time.monotonic() - started, done.stderr)


def order_hash(out: Path) -> str:
    """Of the sequences of every step, whichever process had them."""
    steps: dict[str, set[str]] = defaultdict(set)
    for path in order_of(out).glob("*.txt"):
        for line in path.read_text().splitlines():
            step, *rows = line.split()
            steps[step] |= set(rows)
    content = json.dumps({step: sorted(rows) for step, rows in sorted(steps.items())})
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Difference:
    """What two runs do not have in common: the largest differences in nats of the loss curve, probes and evaluation."""

    loss: float
    probe: float
    evaluation: float
    same_order: bool
    same_replay: bool
    same_cost: bool


def difference(one: Path, other: Path) -> Difference:
    """Of two finished runs."""
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
        max(losses), max(probed), max(final), order_hash(one) == order_hash(other),
        same_rows and rows[0]["replay"] == rows[1]["replay"], costs[0] == costs[1],
    )  # fmt: skip
