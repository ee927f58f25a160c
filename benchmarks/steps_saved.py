"""Steps that a small trained teacher saves a larger student on real text.

A small model is trained for longer than the student will be; the student is then trained plainly, and with
knowledge inheritance from it, with the same data order, seed and constant learning rate. Counted is the step at
which the taught student reaches the plain one's final held-out loss, and the fraction of steps, and of FLOPs with
the teacher's passes included, that is saved. With `--cached` the teacher's targets on the student's whole corpus are
written first, as sparse targets, and that is what is charged.

    LIFELONG_DATA=... python benchmarks/steps_saved.py [--domain wiki] [--tokens 600k] [--runs FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

from lifelong.inherit.write_cache import CacheRequest, make_scheme, write_cache
from lifelong.ledger.history import read_history
from lifelong.lm.checkpoint import load_config, meta_model
from lifelong.lm.flops import forward_flops_per_token
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from lifelong.schema import parse_count

SMALL = {"layers": 2, "hidden_size": 96, "heads": 3}
LARGE = {"layers": 3, "hidden_size": 160, "heads": 5}


def recipe(
    options: argparse.Namespace, name: str, model: dict[str, Any], domain: str, tokens: int, **changes: Any
) -> Any:
    """A recipe of one stage on one domain."""
    return parse_recipe({
        "name": name,
        "model": {"family": "llama", **model},
        "tokenizer": {"checkpoint": options.tokenizer},
        "sequence_length": 128,
        "stages": [{"domain": domain, "tokens": tokens}],
        "train": {
            "learning_rate": 1e-3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.03,
            "per_device_train_batch_size": 8, "logging_steps": 20,
        },
        "evaluate": {"tokens": 20_000, "probes": 40, "probe_tokens": 20_000, "samples": 0},
        "seed": options.seed,
        **changes,
    })  # fmt: skip


def curve(out: Path) -> list[tuple[int, float]]:
    """Held-out loss by step, from the probes."""
    history = json.loads(next(out.glob("stages/00-*/history.json")).read_text())
    return [(point["step"], point["nats_per_token"]) for point in history["probes"]]


def reached(points: list[tuple[int, float]], nats: float) -> float | None:
    """The step at which a curve first goes below `nats`; between two probes the loss is linear in the log of steps."""
    for (step, high), (later, low) in pairwise(points):
        if low <= nats < high:
            return step * (later / step) ** ((high - nats) / (high - low))
    return None


def cached_targets(options: argparse.Namespace, teacher: Path) -> tuple[Path, float]:
    """The folder of the targets on the student's corpus, and the FLOPs of the pass that wrote them."""
    request = CacheRequest(
        str(teacher), [options.domain], make_scheme(), temperature=options.temperature, sequence_length=128
    )
    folder = options.runs / f"targets-{options.temperature:g}"
    report = write_cache(request, folder)
    model = meta_model(load_config(str(teacher)), "clm")
    return folder, report.blocks * 128 * forward_flops_per_token(model, 128, "clm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domain", default="wiki")
    parser.add_argument("--teacher-domain", help="that of the student where not given")
    parser.add_argument("--cached", action="store_true", help="targets written once instead of a teacher beside")
    parser.add_argument("--tokens", default="600k", help="of the student")
    parser.add_argument("--teacher-tokens", default="1200k")
    parser.add_argument("--probes", type=int, default=20)
    parser.add_argument("--until", type=float, default=0.6)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--tokenizer", default=os.environ.get("LIFELONG_DATA", "") + "/tokenizers/bpe4k-public")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/steps-saved"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/steps_saved.json"))
    options = parser.parse_args()
    if not os.environ.get("LIFELONG_DATA"):
        print("left out: set LIFELONG_DATA to the folder of the corpora")
        return
    tokens, teacher_tokens = parse_count(options.tokens), parse_count(options.teacher_tokens)
    learned = recipe(options, "teacher", SMALL, options.teacher_domain or options.domain, teacher_tokens)
    run_recipe(learned, options.runs / "teacher")
    teacher = next((options.runs / "teacher/stages").glob("00-*")) / "model"
    cache, cache_flops = cached_targets(options, teacher) if options.cached else (None, 0.0)
    inherit = {
        "teacher": {"cache": str(cache)} if cache else str(teacher), "alpha": options.alpha, "schedule": "linear",
        "until": options.until, "temperature": options.temperature,
    }  # fmt: skip
    taught_name = f"taught-{options.alpha:g}-{options.until:g}-{options.temperature:g}{'-cached' * options.cached}"
    forms = {"plain": {}, taught_name: {"inherit": inherit}}
    for name, changes in forms.items():
        looks = {"tokens": 6_000, "probes": options.probes, "probe_tokens": 6_000, "samples": 0}
        run_recipe(recipe(options, name, LARGE, options.domain, tokens, evaluate=looks, **changes), options.runs / name)
    plain, taught = (curve(options.runs / name) for name in forms)
    last_step, target = plain[-1]  # the same documents as in every other probe
    step = reached(taught, target)
    costs = (json.loads((options.runs / name / "report/matrix.json").read_text())["cost"] for name in forms)
    flops = dict(zip(("plain", "taught"), costs, strict=True))
    teacher_flops = flops["taught"]["teacher_flops"] + cache_flops
    result = {
        "seed": options.seed, "alpha": options.alpha, "until": options.until, "temperature": options.temperature,
        "cached": options.cached, "teacher_flops": teacher_flops,
        "teacher_nats": read_history(options.runs / "teacher").matrix.nats_per_token[0][0],
        "plain_nats": target, "taught_nats": taught[-1][1], "steps": last_step, "reached_at": step,
        "steps_saved": None if step is None else 1 - step / last_step,
        "flops_saved": None,
        "plain": plain, "taught": taught, "cost": flops,
    }  # fmt: skip
    if step is not None:  # the teacher is gone by then, or it is not: its whole cost is charged
        per_step = flops["plain"]["flops"] / last_step
        result["flops_saved"] = 1 - (step * per_step + teacher_flops) / flops["plain"]["flops"]
    print(
        f"held-out nats per token: teacher {result['teacher_nats']:.4f}, plain {target:.4f}, taught {taught[-1][1]:.4f}"
    )
    if step is None:
        print(f"the taught student does not reach the plain one's loss in {last_step} steps")
    else:
        print(
            f"the taught student reaches {target:.4f} at step {step:.0f} of {last_step}: "
            f"{result['steps_saved']:.1%} of the steps, {result['flops_saved']:.1%} of the FLOPs saved"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
