"""A whole training step: Trainer's own loss path against ours, without a teacher and with one of equal size.

Forms take turns in one process; medians of several rounds, given as ratios to the plain step.

    python benchmarks/step.py [--rounds 9] [--layers 4] [--width 256] [--vocab 8192]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from lifelong.expand import new_config
from lifelong.inherit import loss_head
from lifelong.inherit.inheritor import Inheritor
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.teachers import OnlineTeacher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/step.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    config = new_config(
        "llama", vocab_size=options.vocab, max_positions=256, layers=options.layers, hidden_size=options.width, heads=4
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    ids = torch.randint(0, options.vocab, (8, 256))
    labels = ids.clone()
    labels[:, 0] = -100
    batch = {
        "input_ids": ids,
        "labels": labels,
        "segment_ids": torch.ones_like(ids),
        "position_ids": torch.arange(256).repeat(8, 1),
    }
    taught, silent = (
        Inheritor(OnlineTeacher(copy.deepcopy(model), "clm"), make_schedule("constant", alpha=alpha), temperature=2.0)
        for alpha in (0.5, 0.0)
    )

    def plain() -> torch.Tensor:
        return model(input_ids=ids, labels=labels, use_cache=False).loss

    def ours(inheritor: Inheritor | None) -> Callable[[], torch.Tensor]:
        def step() -> torch.Tensor:
            with loss_head(model, "clm"):
                inheritance = inheritor.for_batch(batch, progress=0.0, step=0) if inheritor else None
                return model(**batch, inheritance=inheritance).loss

        return step

    forms = {
        "plain transformers": plain,
        "ours": ours(None),
        "ours, KI tau 2": ours(taught),
        "ours, alpha 0": ours(silent),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for round_ in range(options.rounds + 1):
        for name, form in forms.items():
            model.zero_grad(set_to_none=True)
            started = time.perf_counter()
            form().backward()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    base = medians["plain transformers"]
    for name, value in medians.items():
        print(f"{name:20} {value * 1e3:8.1f} ms   {value / base:5.2f}x")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"options": {k: str(v) for k, v in vars(options).items()}, "seconds": medians}, indent=1)
    )


if __name__ == "__main__":
    main()
