"""Seconds of a report over generated figures, by number of domains and stages.

    python benchmarks/report.py --domains 100 --stages 100

Processor seconds stand beside the clock: only they compare on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Clock and processor seconds."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=int, default=100)
    parser.add_argument("--stages", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    from rich.console import Console

    from lifelong.report import write_report
    from lifelong.report.html import page
    from lifelong.report.table import run_tables
    from tests.report.generated import generated_history

    history = generated_history(arguments.domains, arguments.stages)
    console = Console(file=open("/dev/null", "w", encoding="utf-8"), width=80)  # noqa: PTH123, SIM115
    rows: dict[str, list[tuple[float, float]]] = {}
    for _ in range(arguments.rounds):
        with TemporaryDirectory() as folder:
            rows.setdefault("whole report", []).append(timed(lambda: write_report(history, Path(folder))))
        rows.setdefault("page alone", []).append(timed(lambda: page(history)))
        rows.setdefault("terminal", []).append(timed(lambda: [console.print(part) for part in run_tables(history)]))
    figures = {
        name: {
            "clock_seconds": sorted(c for c, _ in runs)[len(runs) // 2],
            "processor_seconds": sorted(p for _, p in runs)[len(runs) // 2],
        }
        for name, runs in rows.items()
    }
    print(f"{arguments.domains} domains x {arguments.stages} stages, median of {arguments.rounds}")
    for name, values in figures.items():
        clock, processor = values["clock_seconds"], values["processor_seconds"]
        print(f"{name:>14}  {clock:6.2f} s on the clock  {processor:6.2f} s of the processor")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
