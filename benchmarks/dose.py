"""How good `plan --probe` is: pieces of recorded streams, carried to the length at which the study recorded them.

    LIFELONG_DATA=... python -m benchmarks.dose [--pieces 8] [--json FILE]

The stream is `converged` of the study: stories260K, its own text again, then 150k tokens of news, without replay and at
shares of 0.1 and 0.3, three seeds (benchmarks/study/results/converged.jsonl). Without replay the piece begins at
stories260K itself and watches its text. Printed are, per piece and seed, the exponents with which learning and
forgetting would have been met, and the carried figures divided by the recorded ones.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifelong.plan import dose
from lifelong.recipe.files import load_recipe

HERE = Path(__file__).parent / "study"
ARMS = {1.0: "sequential", 0.1: "replay 0.1", 0.3: "replay 0.3"}
KINDS = {
    "weight": ["stages=[{domain: news, tokens: 150k}]", "watch=[tinystories]", "replay=null"],
    "replay share": [],
}


def recorded() -> dict[tuple[float, int], tuple[float, float]]:
    """Learned and lost in the second stage, nats per token, by share and seed."""
    found = {}
    rows = [json.loads(line) for line in (HERE / "results" / "converged.jsonl").read_text().splitlines()]
    for share, arm in ARMS.items():
        for row in rows:
            if row["arm"] == arm:
                first, second = row["nats_per_token"][:2]
                best = min(row["initial"][0], first[0])
                found[share, row["seed"]] = first[1] - second[1], second[0] - best
    return found


def compare(pieces: Sequence[int], seeds: Sequence[int], kind: str) -> list[dict[str, Any]]:
    """One row a piece, seed and dose that the study recorded."""
    truth, rows = recorded(), []
    for piece in pieces:
        for seed in seeds:
            recipe = load_recipe(HERE / "recipes" / "converged-replay.yaml", [f"seed={seed}", *KINDS[kind]])
            dose.PIECE, dose.LOW_SHARE = 1 / piece, 0.1
            found = dose.probe_dose(recipe)
            assert found.kind == kind
            ratio = found.tokens / found.piece_tokens
            for seen, carried in zip(found.seen, found.carried, strict=True):
                if (seen.dose, seed) not in truth:
                    continue
                learned, lost = truth[seen.dose, seed]
                rise, carried_rise = seen.rises["tinystories"], carried.rises["tinystories"]
                rows.append({
                    "piece": piece, "seed": seed, "dose": seen.dose, "learned": learned, "lost": lost,
                    "learning_exponent": math.log(learned / seen.learned) / math.log(ratio),
                    "forgetting_exponent": math.log(lost / rise) / math.log(ratio) if rise > 0 and lost > 0 else None,
                    "learned_ratio": carried.learned / learned, "lost_ratio": carried_rise / lost,
                })  # fmt: skip
                print("  ".join(f"{key} {value:.3g}" for key, value in rows[-1].items() if value is not None))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", default="8", help="the stage divided by these")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    pieces, seeds = ([int(part) for part in text.split(",")] for text in (arguments.pieces, arguments.seeds))
    found = {}
    for kind in KINDS:
        print(kind)
        found[kind] = rows = compare(pieces, seeds, kind)
        for key in ("learning_exponent", "forgetting_exponent", "learned_ratio", "lost_ratio"):
            values = [row[key] for row in rows if row[key] is not None]
            print(f"{key}: median {statistics.median(values):.3f}, from {min(values):.3f} to {max(values):.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
