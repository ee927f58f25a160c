"""What growth does to a real checkpoint, and to the steps after it.

1. stories260K grown to several shapes: held-out loss on TinyStories before and after.
2. The checkpoint trains for `--steps` steps (so that Adam has moments), grows, and trains on from each of: the grown
   model with mapped moments, the grown model with a fresh Adam, the ELLE mapping with a fresh Adam, random weights of
   the large shape. Same batches for all; held-out loss on the way, mean over seeds.
3. (`--part strategies`) Which strategy learns best on text that has more to teach: the checkpoint trains for `--before`
   steps on encyclopedia, news, books and code in turns, grows by every strategy, with mapped moments or a fresh Adam,
   and trains on for `--steps` steps that meet no window twice. With a ramp, the rate of new entries rises to that of
   old ones over the first 100 steps.

    LIFELONG_DATA=... python -m benchmarks.growth_training [--part strategies] [--steps 200] [--seeds 3]
    LIFELONG_DATA=... python -m benchmarks.growth_training --part strategies --before 300 --steps 2000 --seeds 1 \
        --arms "not grown" "pad, mapped" "pad, fresh"
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
import transformers

from lifelong.expand import expand_model, grow, plan_expansion

SHAPES: dict[str, dict[str, int]] = {
    "wider, 64 -> 96": {"hidden_size": 96, "heads": 12, "kv_heads": 6, "intermediate_size": 256},
    "deeper, 5 -> 8 layers": {"layers": 8},
    "larger heads, 8 -> 16": {"head_dim": 16},
    "MHA, 4 -> 8 kv heads": {"kv_heads": 8},
    "a mixture of 4 experts": {"experts": 4},
    "all, to 1.4M": {
        "hidden_size": 120, "heads": 12, "kv_heads": 6, "head_dim": 12, "intermediate_size": 320, "layers": 8,
    },
}  # fmt: skip
LARGE = SHAPES["all, to 1.4M"]
LENGTH, BATCH = 128, 8
LEARNING_RATE = 5e-4
LOOKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 400, 500, 1000, 2000)
MEDIUM = {"hidden_size": 80, "heads": 10, "kv_heads": 5, "intermediate_size": 240, "layers": 7}
ARMS = (
    "not grown", "pad, mapped", "clone, mapped", "pairs, mapped", "pad, fresh", "clone, fresh", "pairs, fresh",
    "pad, mapped, ramp", "clone, mapped, ramp",
)  # fmt: skip
DOMAINS, SHORT, FEW, RAMP = ("wiki", "news", "books", "code"), 64, 6, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("growth", "strategies"), default="growth")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--before", type=int, default=500, help="steps before growth, with --part strategies")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, metavar="ARM", help="; ".join(ARMS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/growth_training.json"))
    options = parser.parse_args()
    data = Path(
        os.environ.get("LIFELONG_DATA") or parser.error("set LIFELONG_DATA to the folder of corpora and models")
    )
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = data / "models" / "stories260K"
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    if options.part == "strategies":
        rank_strategies(model, tokenizer, data, options)
        return
    train, valid = (
        windows(data / "corpora" / f"tinystories.{split}.jsonl.gz", tokenizer) for split in ("train", "valid")
    )
    valid = valid[:200]
    exact = grow_to_shapes(model, valid)
    curves = [train_arms(copy.deepcopy(model), train, valid, options.steps, seed) for seed in seeds_of(options)]
    report(curves, options.steps)
    options.out.write_text(json.dumps({"exact": exact, "curves": curves}, indent=1) + "\n")


def seeds_of(options: argparse.Namespace) -> range:
    return range(options.first_seed, options.first_seed + options.seeds)


def report(curves: list[dict[str, dict[int, float]]], steps: int) -> None:
    """Mean curves of all arms, and the deviation over seeds at their end."""
    looks = [look for look in LOOKS if look <= steps]
    means = {arm: {look: statistics.mean(curve[arm][look] for curve in curves) for look in looks} for arm in curves[0]}
    ends = {arm: [curve[arm][looks[-1]] for curve in curves] for arm in curves[0]}
    print(f"\nheld-out loss (nats a token) so many steps after growth, mean of {len(curves)} seeds")
    print(f"{'':32}" + "".join(f"{look:>8}" for look in looks) + "   +-")
    for arm, curve in means.items():
        print(f"{arm:32}" + "".join(f"{curve[look]:8.4f}" for look in looks) + f"  {statistics.pstdev(ends[arm]):.4f}")
    first = next((arm for arm in ends if arm == "pad, mapped"), next(iter(ends)))
    print(f"\nat the end, less {first!r} of the same seed: every seed, mean, p of a paired t-test")
    for arm, values in ends.items():
        paired = [value - other for value, other in zip(values, ends[first], strict=True)]
        p = scipy.stats.ttest_1samp(paired, 0).pvalue if len(paired) > 1 and arm != first else float("nan")
        print(
            f"{arm:32}" + "".join(f"{value:+9.4f}" for value in paired) + f"{statistics.mean(paired):+10.4f} {p:8.3f}"
        )


def rank_strategies(model: Any, tokenizer: Any, data: Path, options: argparse.Namespace) -> None:
    """Every strategy and kind of moments after growth, on a mixture of domains that the checkpoint has not seen."""
    folder, count = data / "corpora", (options.before + options.steps) * FEW
    texts = [
        windows(folder / f"{name}.train.jsonl.gz", tokenizer, SHORT, count // len(DOMAINS) + 1) for name in DOMAINS
    ]
    train = torch.stack(texts, 1).flatten(0, 1)  # in turns
    valid = torch.cat([windows(folder / f"{name}.valid.jsonl.gz", tokenizer, SHORT, 50) for name in DOMAINS])
    curves = []
    for seed in seeds_of(options):
        curves.append(strategy_arms(copy.deepcopy(model), train, valid, options, seed))
        options.out.with_name("growth_strategies.json").write_text(json.dumps(curves, indent=1) + "\n")
    report(curves, options.steps)


def strategy_arms(
    model: Any, train: torch.Tensor, valid: torch.Tensor, options: argparse.Namespace, seed: int
) -> dict[str, dict[int, float]]:
    """The curve of every arm: step after growth -> held-out loss."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    optimizer = adam(model)
    for batch in batches(train, order, 0, options.before, FEW):
        step(model, optimizer, batch)
    moments, curves = copy.deepcopy(optimizer.state_dict()), {}
    for name in options.arms:
        arm, new = copy.deepcopy(model), {}
        own = adam(arm)
        own.load_state_dict(moments)
        if name != "not grown":
            strategy, how, *ramp = name.split(", ")
            plan = plan_expansion(arm.config, strategy=strategy, seed=seed, **MEDIUM)
            arm, mapping, _ = grow(arm, plan, optimizer=own)
            own = adam(arm) if how == "fresh" else own
            parameters = dict(arm.named_parameters())
            new = {parameters[key]: mask for key, mask in mapping.masks() if ramp and key in parameters}
        curves[name] = curve = {0: loss_of(arm, valid)}
        for number, batch in enumerate(batches(train, order, options.before, options.steps, FEW), 1):
            old = {p: p.detach().clone() for p in new} if number < RAMP else {}
            step(arm, own, batch)
            for parameter, before in old.items():
                parameter.data.copy_(
                    torch.where(new[parameter], before.lerp(parameter.data, number / RAMP), parameter.data)
                )
            if number in LOOKS:
                curve[number] = loss_of(arm, valid)
        print(f"seed {seed}, {name}: {curve}", flush=True)
    return curves


def grow_to_shapes(model: Any, valid: torch.Tensor) -> list[dict[str, Any]]:
    """Held-out loss before and after growth to every shape."""
    before, rows = loss_of(model, valid), []
    print(f"{'shape':24} {'parameters':>10} {'loss before':>12} {'loss after':>12} {'float64':>9} {'float32':>9}")
    for name, shape in SHAPES.items():
        grown, report = expand_model(model, **shape)
        rows.append(
            {
                "shape": name, "parameters": report.parameters_after, "before": before, "after": loss_of(grown, valid),
                "float64": report.max_logit_difference_float64, "float32": report.max_logit_difference_float32,
            }
        )  # fmt: skip
        row = rows[-1]
        print(f"{name:24} {row['parameters']:10,} {before:12.7f} {row['after']:12.7f} {row['float64']:9.1e} "
              f"{row['float32']:9.1e}")  # fmt: skip
    return rows


def train_arms(
    model: Any, train: torch.Tensor, valid: torch.Tensor, steps: int, seed: int
) -> dict[str, dict[int, float]]:
    """The curve of every arm: step after growth -> held-out loss."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    optimizer = adam(model)
    for batch in batches(train, order, 0, steps):
        step(model, optimizer, batch)
    kept = copy.deepcopy(model)
    moved = copy.deepcopy(optimizer.state_dict())
    arms: dict[str, tuple[Any, torch.optim.Optimizer]] = {}
    arms["not grown, moments kept"] = (kept, adam(kept))
    arms["not grown, moments kept"][1].load_state_dict(moved)
    mapped, _ = expand_model(model, **LARGE, seed=seed, optimizer=optimizer)
    arms["exact growth, mapped moments"] = (mapped, optimizer)
    for name, mode in (("exact growth, fresh Adam", "exact"), ("ELLE's mapping, fresh Adam", "elle")):
        grown, _ = expand_model(model, **LARGE, seed=seed, mode=mode)
        arms[name] = (grown, adam(grown))
    torch.manual_seed(seed)
    fresh = type(mapped)(mapped.config)
    arms["random weights, large shape"] = (fresh, adam(fresh))
    curves = {}
    for name, (arm, own) in arms.items():
        curve = {0: loss_of(arm, valid)}
        for number, batch in enumerate(batches(train, order, steps, steps), 1):
            step(arm, own, batch)
            if number in LOOKS:
                curve[number] = loss_of(arm, valid)
        curves[name] = curve
        print(f"seed {seed}, {name}: {curve}", flush=True)
    return curves


def adam(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)


def step(model: Any, optimizer: torch.optim.Optimizer, ids_BT: torch.Tensor) -> None:
    optimizer.zero_grad()
    model.train()
    model(input_ids=ids_BT, labels=ids_BT).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def batches(
    windows_NT: torch.Tensor, order: torch.Tensor, start: int, steps: int, size: int = BATCH
) -> Iterator[torch.Tensor]:
    """`[B,T]` batches number `start` to `start + steps`, from the beginning again when all were seen."""
    for number in range(start, start + steps):
        chosen = torch.arange(number * size, (number + 1) * size) % len(order)
        yield windows_NT[order[chosen]]


def loss_of(model: Any, windows_NT: torch.Tensor) -> float:
    """Mean nats a token."""
    model.eval()
    with torch.no_grad():
        losses = [float(model(input_ids=part, labels=part).loss) for part in windows_NT.split(50)]
    return statistics.mean(losses)


def windows(path: Path, tokenizer: Any, length: int = LENGTH, most: int | None = None) -> torch.Tensor:
    """`[N,T]` windows of the text of documents one after another, `most` of them at most."""
    ids: list[int] = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            ids += [tokenizer.bos_token_id, *tokenizer(json.loads(line)["text"], add_special_tokens=False).input_ids]
            if most is not None and len(ids) >= most * length:
                break
    count = min(len(ids) // length, most or len(ids))
    return torch.from_numpy(np.array(ids[: count * length], dtype=np.int64).reshape(count, length))


if __name__ == "__main__":
    main()
