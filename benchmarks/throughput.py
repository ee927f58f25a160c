"""Tokens/s, share of the peak FLOP/s and peak memory of training: plain, with an online teacher, with a cached one.

Real steps of the stage trainer on made-up tokens, the three ways taking turns; medians over the steps, ratios against
plain in the same round.

    python -m benchmarks.throughput [--size tiny|125m|1b] [--batch 8] [--length 1024] [--bf16] [--compile]
        [--checkpointing] [--attention sdpa|eager] [--peak-flops 989e12] [--rounds 3] [--steps 3] [--json FILE]

On a GPU memory is that of its allocator; on a CPU only the plan's figure is printed (`benchmarks.plan_memory` measures
it). The share of the peak (MFU) counts the model's FLOPs, not those that checkpointing computes again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from lifelong.expand import new_config
from lifelong.inherit.cache import CacheSettings, CacheWriter, TargetCache, fill_cache
from lifelong.inherit.sparse import TopK, scheme_to_json
from lifelong.inherit.teachers.cache import CachedTeacher
from lifelong.inherit.teachers.model import OnlineTeacher
from lifelong.inherit.write_cache import block_probabilities
from lifelong.lm.checkpoint import meta_model
from lifelong.lm.flops import forward_flops_per_token, num_parameters, training_flops_per_token
from lifelong.plan import Devices
from lifelong.plan.memory import device_memory
from lifelong.plan.throughput import Workload, dummy_collator, measure_throughput, random_model, random_rows
from lifelong.train.arguments import training_arguments

# layers, width, feed-forward, heads, vocabulary; the teacher is of the same family
SIZES = {
    "tiny": ((2, 64, 192, 2, 512), (1, 64, 192, 2, 512)),
    "125m": ((12, 768, 2048, 12, 32000), (6, 512, 1408, 8, 32000)),
    "1b": ((16, 2048, 8192, 32, 32000), (12, 768, 2048, 12, 32000)),
}
TOP_K = 10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def shape(sizes: Sequence[int], options: argparse.Namespace) -> Any:
    layers, width, inner, heads, vocab = sizes
    config = new_config(
        "llama", vocab_size=vocab, max_positions=options.length, layers=layers, hidden_size=width,
        intermediate_size=inner, heads=heads,
    )  # fmt: skip
    config._attn_implementation = options.attention
    return config


def cached(workload: Workload, count: int, folder: Path) -> CachedTeacher:
    """A teacher whose targets lie on disk for every row of the workload."""
    settings = CacheSettings(
        scheme=scheme_to_json(TopK(TOP_K)),
        temperature=2.0,
        vocab_size=workload.config.vocab_size,
        tokenizer="made up",
        teacher="random",
        objective=workload.objective,
        sequence_length=workload.length,
        corpora={},
    )
    teacher = OnlineTeacher(random_model(workload.teacher, workload.objective).to(DEVICE), workload.objective)
    collate, rows = dummy_collator(workload), random_rows(workload, count)
    batches = ({name: value.to(DEVICE) for name, value in collate([row]).items()} for row in rows)
    with torch.inference_mode():
        fill_cache(
            CacheWriter(folder, settings), batches, lambda batch: block_probabilities(teacher, batch, 2.0),
            lambda *_: None,
        )  # fmt: skip
    return CachedTeacher(
        TargetCache(folder), tokenizer="made up", temperature=2.0, objective=workload.objective,
        sequence_length=workload.length,
    )  # fmt: skip


def once(workload: Workload, teacher: Any) -> tuple[float, int]:
    """Tokens/s and bytes at the peak (0 on a CPU)."""
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    speed = measure_throughput(workload, teacher).tokens_per_second
    return speed, torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    student, teacher = (shape(sizes, options) for sizes in SIZES[options.size])
    train: Mapping[str, Any] = {
        "per_device_train_batch_size": options.batch, "bf16": options.bf16, "torch_compile": options.compile,
        "gradient_checkpointing": options.checkpointing, "use_cpu": DEVICE == "cpu",
    }  # fmt: skip
    plain = Workload(student, "clm", options.length, train, None, options.steps)
    online = Workload(student, "clm", options.length, train, teacher, options.steps)
    step = training_flops_per_token(meta_model(student, "clm"), options.length)
    beside = forward_flops_per_token(meta_model(teacher, "clm"), options.length)
    rounds: dict[str, list[tuple[float, int]]] = {"plain": [], "KI online": [], "KI cached": []}
    with tempfile.TemporaryDirectory() as name:
        targets = cached(online, options.batch * (options.steps + 1), Path(name) / "cache")
        for _ in range(options.rounds):
            rounds["plain"].append(once(plain, None))
            rounds["KI online"].append(once(online, None))
            rounds["KI cached"].append(once(plain, targets))
    found: dict[str, Any] = {"parameters": num_parameters(meta_model(student, "clm")), "options": vars(options)}
    for way, results in rounds.items():
        speed = statistics.median(tokens for tokens, _ in results)
        ratio = statistics.median(own[0] / base[0] for own, base in zip(results, rounds["plain"], strict=True))
        flops = speed * (step + (beside if way == "KI online" else 0.0))
        entry = {
            "tokens_per_second": speed, "against_plain": ratio, "flops_per_second": flops,
            "mfu": flops / options.peak_flops if options.peak_flops else None,
            "peak_bytes": max(peak for _, peak in results), "planned_bytes": planned(plain, online, way, options),
        }  # fmt: skip
        found[way] = entry
        mfu = "" if entry["mfu"] is None else f", MFU {entry['mfu']:.1%}"
        peak = "" if not entry["peak_bytes"] else f", peak {entry['peak_bytes'] / 1e9:.2f} GB"
        print(
            f"{way:10} {speed:,.0f} tokens/s, {ratio:.2f} x plain, {flops:.3g} FLOP/s{mfu}{peak}, "
            f"planned {entry['planned_bytes'] / 1e9:.2f} GB"
        )
    return found


def planned(plain: Workload, online: Workload, way: str, options: argparse.Namespace) -> int:
    """Bytes by the plan."""
    train = {key: value for key, value in plain.train.items() if key not in ("bf16", "torch_compile")}
    arguments = training_arguments(train, output_dir=Path("unused"), max_steps=1, seed=0)
    teachers = [online.teacher] if way == "KI online" else []
    return device_memory(
        plain.config, arguments, Devices(1, "none", DEVICE), objective="clm", length=options.length,
        teachers=teachers, low_precision=options.bf16,
    ).total  # fmt: skip


def main() -> None:
    """Print one line a way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--peak-flops", type=float, help="of the device, for the MFU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if DEVICE == "cpu":
        torch.set_num_threads(1)
    found = measure(options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
