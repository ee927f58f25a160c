"""One recipe in 1, 2 and 4 processes: DDP, FSDP2, FSDP2 with offload; killed, and continued by another number of them.

A tiny LLaMA learns two domains with growth, recovery, knowledge inheritance, replay and probes. Every run is compared
with that of one process: the largest difference of the loss at any step, of a probe, of the final evaluation in nats;
whether every optimizer step held the same sequences, replay was counted the same, and the cost in tokens and FLOPs is
the same. Runs that are killed lose one process by SIGKILL in the middle of the second stage. On a machine without
accelerators FSDP2 runs over gloo with the CPU in their place (tests/ranks/worker.py).

    python -m benchmarks.ranks [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.ranks.launches import difference, launch, order_hash, write_recipe

WHOLE = [("ddp", 2), ("ddp", 4), ("fsdp2", 2), ("fsdp2", 4), ("fsdp2+offload", 2), ("fsdp2+offload", 4)]
# mode, processes of which one is killed, its rank, processes that go on
KILLED = [
    ("ddp", 2, 1, 1),
    ("ddp", 1, 0, 2),
    ("ddp", 2, 0, 4),
    ("ddp", 4, 3, 1),
    ("fsdp2", 2, 1, 4),
    ("fsdp2", 4, 0, 2),
]
STEP = 7


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    run: str
    loss: float
    probe: float
    evaluation: float
    same_order: bool
    same_replay: bool
    same_cost: bool
    seconds: float
    exit_code: int | None = None
    ended_after: float | None = None


def measure(folder: Path, quick: bool) -> list[Row]:
    """Every run against that of one process."""
    recipe = write_recipe(folder)
    started = launch(recipe, folder / "one", 1, order=folder / "one-order")
    assert started.exit_code == 0, started.stderr
    expected = order_hash(folder / "one-order")

    def row(name: str, out: Path, seconds: float, exit_code: int | None = None, ended: float | None = None) -> Row:
        found = difference(folder / "one", out)
        same = order_hash(out.with_name(f"{out.name}-order")) == expected
        return Row(
            name, found.loss, found.probe, found.evaluation, same, found.same_replay, found.same_cost, seconds,
            exit_code, ended,
        )  # fmt: skip

    rows = [row("1 process", folder / "one", started.seconds)]
    show(rows[-1])
    for mode, processes in WHOLE[:1] if quick else WHOLE:
        out = folder / f"{mode}-{processes}"
        done = launch(recipe, out, processes, mode, order=out.with_name(f"{out.name}-order"))
        assert done.exit_code == 0, done.stderr
        rows.append(row(f"{mode}, {processes} processes", out, done.seconds))
        show(rows[-1])
    for mode, first, rank, then in KILLED[:1] if quick else KILLED:
        out = folder / f"{mode}-{first}-{then}"
        order = out.with_name(f"{out.name}-order")
        died = launch(recipe, out, first, mode, die=(rank, STEP), order=order)
        resumed = launch(recipe, out, then, mode, order=order)
        assert resumed.exit_code == 0, resumed.stderr
        name = f"{mode}, {first} processes, {rank} killed, then {then}"
        rows.append(row(name, out, resumed.seconds, died.exit_code, died.ended_after))
        show(rows[-1])
    return rows


def show(row: Row) -> None:
    """A line of the table."""
    marks = " | ".join("same" if same else "DIFFERENT" for same in (row.same_order, row.same_replay, row.same_cost))
    died = "" if row.exit_code is None else f"exit {row.exit_code}, all ended after {row.ended_after:.1f} s"
    print(
        f"| {row.run} | {row.loss:.1e} | {row.probe:.1e} | {row.evaluation:.1e} | {marks} | {died} | {row.seconds:.0f} s |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two processes only")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print("| run | loss | probe | evaluation | order | replay | cost | kill | whole command |")
    print("|---|---:|---:|---:|---|---|---|---|---:|")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.quick)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
