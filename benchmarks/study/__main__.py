"""The study's command: `python -m benchmarks.study --part main`; the same command goes on where it stopped.

LIFELONG_DATA=... python -m benchmarks.study                 # all parts; hours on two cores, in pieces of a minute
LIFELONG_DATA=... python -m benchmarks.study --part main --size large --tokens 20M --workers 1   # a GPU machine
python -m benchmarks.study --part                            # only the page, from the raw figures in results/
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from benchmarks.study.arms import RECIPES, Arm, Part
from benchmarks.study.parts import PARTS, SCALABLE, large
from benchmarks.study.real_model import look
from lifelong.errors import did_you_mean

DOCS = Path(__file__).parents[2] / "docs"


def main() -> None:
    """Run parts of the study, then write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [name for name in PARTS if name != "real-model" or "SMOLLM2" in os.environ]
    parser.add_argument("--part", nargs="*", choices=list(PARTS), default=every)
    parser.add_argument("--only", nargs="*", default=[], help="names of arms")
    parser.add_argument("--seeds", nargs="*", type=int, help="other seeds than those of the part")
    parser.add_argument("--out", type=Path, help="folder of the runs; runs/study, or runs/study-large")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, a thread each")
    parser.add_argument("--size", choices=("small", "large"), default="small")
    parser.add_argument("--tokens", default="", help="of a stage of the replay arm, which sets the FLOPs of all")
    parser.add_argument("--steps-saved", action="store_true", help="also a larger student under a small teacher")
    parser.add_argument("--no-page", action="store_true", help="leave results/ and docs/results.md alone")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    out: Path = args.out or Path("runs/study-large" if args.size == "large" else "runs/study")
    arms = {arm for name in args.part for arm in PARTS[name].arms}
    if unknown := next((name for name in args.only if name not in arms), None):
        parser.error(f"--only: {unknown!r} is no arm of {', '.join(args.part)}{did_you_mean(unknown, arms)}")
    parts = {name: chosen(name, args) for name in args.part}
    if parts:
        run_parts(parts, out, args)
    if args.steps_saved:
        from benchmarks.study.afterwards import steps_saved

        steps_saved(out)
    if not args.no_page and args.size == "small":
        from benchmarks.study.page import collect, write_page

        collect(out)
        write_page(DOCS)


def chosen(name: str, args: argparse.Namespace) -> Part:
    """A part as the command line wants it."""
    from lifelong.recipe import load_recipe
    from lifelong.schema import parse_count

    part = PARTS[name]
    tokens = parse_count(args.tokens) if args.tokens else part.tokens
    if not isinstance(tokens, int):
        raise SystemExit(f"--tokens: a number like 20M, not {args.tokens!r}")
    os.environ.setdefault("STUDY", str(args.out or "runs/study"))
    if args.size == "large":
        if name not in SCALABLE:
            raise SystemExit(f"--size large: parts {', '.join(SCALABLE)}, not {name}")
        recipes = {arm.recipe: load_recipe(RECIPES / f"{arm.recipe}.yaml") for arm in part.arms.values()}
        grows = {key: [i for i, stage in enumerate(recipe.stages) if stage.expand] for key, recipe in recipes.items()}
        part = large(part, grows, tokens)
    arms: dict[str, Arm] = {key: arm for key, arm in part.arms.items() if not args.only or key in args.only}
    return replace(part, arms=arms, tokens=tokens, seeds=tuple(args.seeds) if args.seeds else part.seeds)


def run_parts(parts: dict[str, Part], out: Path, args: argparse.Namespace) -> None:
    """Everything that has no figures yet."""
    from benchmarks.study.afterwards import downstream, fronts
    from benchmarks.study.runs import prepare, run_all, tasks_of

    recipes = {arm.recipe for part in parts.values() for arm in part.arms.values()}
    prepare(
        out,
        teachers=any(name.startswith(("ki-new-domain", "adaptation-taught")) for name in recipes),
        vocab_size=16_384 if args.size == "large" else 2048,
    )
    tasks = [task for name, part in parts.items() for task in tasks_of(name, part, out)]
    print(f"{len(tasks)} runs", flush=True)
    for figures in run_all(tasks, out, args.workers):
        metrics = figures["metrics"]
        print(
            f"{figures['part']:10} {figures['arm']:34} seed {figures['seed']:3}  AP {metrics['ap']:7.2f}  "
            f"forgetting {metrics.get('forgetting', 0.0):+.3f}  {figures['flops'] / 1e12:.3f} TFLOP  "
            f"{figures['seconds']:.0f} s",
            flush=True,
        )
    if "main" in parts and "ours" in parts["main"].arms:
        fronts(out)
    if "prompts" in parts:
        downstream(out)
    if "real-model" in parts:
        look(out)


if __name__ == "__main__":
    main()
