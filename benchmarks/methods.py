"""All methods on the same stream, with the same budget and the same report: `python -m benchmarks.methods --size tiny`.

Every recipe of a size is run (or continued, or only read where its run is finished); the table and the JSON beside it
give the matrix metrics and the cost. Differences between single seeds of a size as small as tiny are no ranking: give
several seeds and look at the comparison that `lifelong report` makes of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lifelong.metrics import compute_all
from lifelong.pipeline import run_recipe
from lifelong.recipe import load_recipe
from lifelong.recipe.files import known_recipes

METRICS = ("ap", "ap-plus", "forgetting", "bwt", "gain", "in-domain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--only", nargs="*", help="names of recipes; all of the size where not given")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    args = parser.parse_args()
    names = args.only or [name.split("/")[1] for name in known_recipes() if name.startswith(f"{args.size}/")]
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        for seed in args.seeds:
            rows.append(measured(args.size, name, seed, args.out / f"{args.size}-{name}-{seed}"))
            (args.out / f"{args.size}.json").write_text(json.dumps(rows, indent=1))
            print(json.dumps(rows[-1]), flush=True)
    print(as_table(rows))


def measured(size: str, name: str, seed: int, out: Path) -> dict[str, object]:
    """One run: its metrics and its cost."""
    recipe = load_recipe(f"{size}/{name}", [f"seed={seed}", "train.use_cpu=true"])
    result = run_recipe(recipe, out)
    metrics = {key.replace("_", "-"): value for key, value in compute_all(result.matrix).items()}
    return {
        "recipe": name,
        "seed": seed,
        **{key: metrics.get(key) for key in METRICS},
        "final_nats": list(result.matrix.nats_per_token[-1]),
        "tokens": result.cost.tokens,
        "flops": result.cost.flops,
        "seconds": result.cost.seconds,
    }


def as_table(rows: list[dict[str, object]]) -> str:
    """A table in Markdown."""
    heads = ["recipe", "seed", *METRICS, "tokens", "flops", "seconds"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [f"{row[h]:.4g}" if isinstance(row[h], float) else str(row[h]) for h in heads]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
