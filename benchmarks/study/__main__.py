"""The study's command: `python -m benchmarks.study --part main`; the same command goes on where it stopped."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.study.parts import PARTS


def main() -> None:
    """Run parts of the study."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("--part", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--only", nargs="*", default=[], help="names of arms")
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, a thread each")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from benchmarks.study.runs import prepare, run_all, tasks_of

    arms = [arm for name in args.part for key, arm in PARTS[name].arms.items() if not args.only or key in args.only]
    prepare(args.out, teachers=any(arm.recipe.startswith("ki-new-domain") for arm in arms))
    tasks = [task for name in args.part for task in tasks_of(name, PARTS[name], args.out, args.only)]
    print(f"{len(tasks)} runs", flush=True)
    for figures in run_all(tasks, args.out, args.workers):
        metrics = figures["metrics"]
        print(
            f"{figures['part']:8} {figures['arm']:34} seed {figures['seed']:3}  AP {metrics['ap']:7.2f}  "
            f"forgetting {metrics['forgetting']:+.3f}  {figures['flops'] / 1e12:.3f} TFLOP  {figures['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
