"""One recipe in 1, 2 and 4 processes: DDP, FSDP2, FSDP2 with offload; killed, and continued by another number of them.

A tiny LLaMA learns two domains with growth, recovery, knowledge inheritance, replay and probes; beside it the same
with a teacher of replayed text alone, with replay that probes steer, and an untied BERT, which has a parameter that no
loss reaches. Every run is compared with that of one process: the largest difference of the loss at any step, of a
probe, of the final evaluation, in nats; whether every optimizer step held the same sequences, and replay, tokens and
FLOPs were counted the same. Runs that are killed lose one process by SIGKILL in the middle of the second
stage. On a machine without accelerators FSDP2 runs over gloo with the CPU in their place (tests/ranks/worker.py).

    python -m benchmarks.ranks [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.ranks.launches import UNTIED_BERT, Difference, Job, difference, launch, order_of, write_recipe

STEP = 7
RECIPES = {
    "main": {},
    "replay taught": {"inherit": {"alpha": 0.5, "until": 0.5, "on": "replay"}},
    "steered": {"replay": {"memory_tokens": 2000, "share": 0.25, "mix": "adaptive", "probes": 3}},
    "untied BERT": UNTIED_BERT,
}
# recipe, mode, processes
WHOLE = [
    ("main", "ddp", 2),
    ("steered", "ddp", 2),
    ("untied BERT", "ddp", 2),
    ("main", "fsdp2", 2),
    ("main", "fsdp2+offload", 2),
    ("replay taught", "fsdp2+offload", 2),
    ("main", "ddp", 4),
    ("main", "fsdp2", 4),
    ("main", "fsdp2+offload", 4),
]
# mode, processes of which one is killed, its rank, processes that go on
KILLED = [("ddp", 1, 0, 2), ("ddp", 2, 0, 4), ("ddp", 4, 3, 1), ("fsdp2", 2, 1, 4), ("fsdp2+offload", 4, 0, 2)]


@dataclass(frozen=True)
class Row(Difference):
    """One line of the table; exit code and seconds until all had ended where a process was killed."""

    run: str = ""
    exit_code: int | None = None
    ended_after: float | None = None
    student_share: float = 1.0
    teacher_share: float | None = None


def measure(folder: Path) -> list[Row]:
    """Every run against that of one process; each number of processes is started once, and once for every kill."""
    recipes = {name: write_recipe(folder, name.replace(" ", "-"), **changes) for name, changes in RECIPES.items()}
    jobs: dict[int, list[Job]] = {
        1: [Job.at(path, folder / f"{path.stem}-1") for path in recipes.values()],
        2: [],
        4: [],
    }
    table: list[tuple[str, str, Path, int | None, float | None]] = []
    for name, mode, processes in WHOLE:
        out = folder / f"{name.replace(' ', '-')}-{mode}-{processes}"
        jobs[processes].append(Job.at(recipes[name], out, mode))
        table.append((f"{name}, {mode}, {processes} processes", name, out, None, None))
    for mode, first, rank, then in KILLED:
        out = folder / f"killed-{mode}-{first}-{then}"
        died = launch(first, [Job.at(recipes["main"], out, mode, die=(rank, STEP))], folder)
        assert died.ended_after is not None, died.stderr
        jobs[then].append(Job.at(recipes["main"], out, mode))
        title = f"main, {mode}, {first} process{'es' * (first > 1)}, rank {rank} killed, then {then}"
        table.append((title, "main", out, died.exit_code, died.ended_after))
    for processes, listed in jobs.items():
        done = launch(processes, listed, folder)
        assert done.exit_code == 0, done.stderr
    return [
        Row(
            **asdict(difference(folder / f"{recipes[name].stem}-1", out)), run=title, exit_code=code, ended_after=after,
            student_share=_share(out, "student") or 1.0, teacher_share=_share(out, "teacher"),
        )
        for title, name, out, code, after in table
    ]  # fmt: skip


def _share(out: Path, whose: str) -> float | None:
    """The largest part of the parameters that a process held, at its last beginning of a phase."""
    return max((float(path.read_text()) for path in order_of(out).glob(f"{whose}-*")), default=None)


def line(row: Row) -> str:
    """A line of the table."""
    marks = " | ".join("same" if same else "DIFFERENT" for same in (row.same_order, row.same_replay, row.same_cost))
    died = "" if row.exit_code is None else f"exit {row.exit_code}, all ended after {row.ended_after:.1f} s"
    held = f"{row.student_share:.2f}, {'-' if row.teacher_share is None else format(row.teacher_share, '.2f')}"
    return f"| {row.run} | {row.loss:.1e} | {row.probe:.1e} | {row.evaluation:.1e} | {marks} | {held} | {died} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder))
    print("| run | loss | probe | evaluation | order | replay | cost | student, teacher held | killed |")
    print("|---|---:|---:|---:|---|---|---|---|---|")
    for row in rows:
        print(line(row))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
