"""The plan against what is measured: memory of real steps, files of a real run, time of a real run.

Every shape is trained for a few steps by the stage trainer in fresh processes: one each for the resident set, one for
all under PyTorch's profiler, which is told of every tensor's memory when it comes and goes. What is there before the
model (Python, libraries, a workload with a toy model) is taken off both. On a GPU it is the allocator's peak.

    python -m benchmarks.plan_memory [--only NAME ...] [--how tensors resident] [--part memory run] [--json FILE]
    python -m benchmarks.plan_memory --checkpoint FOLDER [--only float32 bfloat16 LoRA QLoRA]

`plan / tensors` is what the plan is held to. `plan / resident` is smaller on a CPU: glibc keeps freed blocks below
32 MB for later. With MALLOC_MMAP_THRESHOLD_=65536 it gives them back, at the price of speed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.inherit import resident
from lifelong.expand import new_config
from lifelong.lm.checkpoint import load_config
from lifelong.plan import Devices, Speed, plan_recipe
from lifelong.plan.disk import folder_bytes
from lifelong.plan.memory import DeviceMemory, Held, device_memory
from lifelong.plan.throughput import Workload, held_model, measure_throughput
from lifelong.recipe import Recipe, load_recipe
from lifelong.train.arguments import training_arguments

# family, objective, layers, width, heads, vocabulary, tokens of a row, `train:`, (layers, width) of a teacher
SHAPES: dict[str, tuple[Any, ...]] = {
    "gpt2, accumulation": ("gpt2", "clm", 3, 256, 4, 8192, 256,
                           {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, None),
    "llama, KI teacher": ("llama", "clm", 4, 384, 6, 16384, 256, {"per_device_train_batch_size": 4}, (3, 192)),
    "bert, checkpointing": ("bert", "mlm", 6, 256, 4, 16384, 128,
                            {"per_device_train_batch_size": 16, "gradient_checkpointing": True}, None),
    "llama, bf16": ("llama", "clm", 6, 256, 4, 8192, 256, {"per_device_train_batch_size": 4, "bf16": True}, None),
    "bert, eager": ("bert", "mlm", 3, 256, 4, 8192, 256, {"per_device_train_batch_size": 4}, None),
}  # fmt: skip
LORA = (("name", "lora"), ("rank", 8))
# how a checkpoint (--checkpoint) is held
HELD = {
    "float32": Held(),
    "bfloat16": Held("bfloat16"),
    "LoRA": Held("float32", None, LORA),
    "LoRA, bfloat16 base": Held("float32", "bfloat16", LORA),
    "QLoRA": Held("float32", "4bit", LORA),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LIMIT = 0.15
CHECKPOINT_LENGTH = 64


def workload_of(name: str, checkpoint: str | None = None) -> Workload:
    if checkpoint is not None:
        train = {"per_device_train_batch_size": 1, "use_cpu": DEVICE == "cpu"}
        return Workload(load_config(checkpoint), "clm", CHECKPOINT_LENGTH, train, None, steps=1, held=HELD[name])
    family, objective, layers, width, heads, vocab, length, train, teacher = SHAPES[name]

    def shape(layers: int, width: int) -> Any:
        config = new_config(
            family, vocab_size=vocab, max_positions=length, layers=layers, hidden_size=width, heads=heads
        )
        if "eager" in name:
            config._attn_implementation = "eager"
        return config

    train = {**train, "use_cpu": DEVICE == "cpu"}
    return Workload(shape(layers, width), objective, length, train, shape(*teacher) if teacher else None, steps=2)


def planned(workload: Workload) -> DeviceMemory:
    train = {key: value for key, value in workload.train.items() if key != "bf16"}
    return device_memory(
        workload.config, training_arguments(train, output_dir=Path("unused"), max_steps=1, seed=0),
        Devices(1, "none", DEVICE), objective=workload.objective, length=workload.length,
        teachers=[workload.teacher] if workload.teacher is not None else [],
        low_precision=bool(workload.train.get("bf16")), held=workload.held,
    )  # fmt: skip


# --- measured, each in a process of its own ------------------------------------------------------------------------


def child(names: list[str], how: str, checkpoint: str | None) -> None:
    """Print the bytes at the peak of each workload, over what was there before."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    toy = new_config("llama", vocab_size=300, max_positions=32, layers=1, hidden_size=16, heads=2)
    measure_throughput(Workload(toy, "clm", 32, {"use_cpu": DEVICE == "cpu"}, toy, steps=1))
    measure = {"cuda": cuda_peak, "tensors": tensor_peak, "resident": resident_peak}[how]
    for name in names:
        gc.collect()
        print(json.dumps({name: measure(workload_of(name, checkpoint))}), flush=True)


def cuda_peak(workload: Workload) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    measure_throughput(workload)
    return torch.cuda.max_memory_allocated() - before


def resident_peak(workload: Workload) -> int:
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    measure_throughput(workload)
    return resident("VmHWM") - before


def bytes_of(model: Any) -> int:
    """Parameters, and what unpacks those in four bits."""
    size = 0
    for value in model.parameters():
        size += value.numel() * value.element_size()
        state = getattr(value, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            if part is not None:
                size += sum(each.numel() * each.element_size() for each in (part.absmax, part.code))
    return size


def tensor_peak(workload: Workload) -> int:
    # before: to hold a base in less takes the whole of it for a moment
    model = held_model(workload.config, workload.objective, workload.held)
    before = bytes_of(model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        measure_throughput(workload, model=model)
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return before + most


def measured(names: list[str], how: str, checkpoint: str | None) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.plan_memory", "--child", *names, "--how", how]
    command += ["--checkpoint", checkpoint] if checkpoint is not None else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{names}: {done.stderr[-2000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return {name: size for line in lines for name, size in json.loads(line).items()}


def memory(names: list[str], ways: list[str], checkpoint: str | None) -> dict[str, Any]:
    peaks: dict[str, dict[str, int]] = {name: {} for name in names}
    for how in ways:
        # what is resident depends on what the process did before; what tensors take does not
        for group in [[name] for name in names] if how == "resident" else [names]:
            for name, peak in measured(group, how, checkpoint).items():
                peaks[name][how] = peak
    found: dict[str, Any] = {}
    for name in names:
        plan = planned(workload_of(name, checkpoint))
        found[name] = {"plan": plan.to_json(), **peaks[name]}
        ratios = ", ".join(
            f"plan / {how} {plan.total / peak:.3f} ({peak / 1e6:.0f} MB)" for how, peak in peaks[name].items()
        )
        print(f"{name:22} plan {plan.total / 1e6:.0f} MB: {ratios}; fullest at {plan.at}", flush=True)
    return found


# --- disk and time of a whole run ---------------------------------------------------------------------------------

GROUPS = {"models": "stages/*/model", "memory": "memory", "heldout": "heldout", "tokenised": ".cache/blocks"}


class Watch(threading.Thread):
    """The most bytes that were in a run folder, by group, looked at twenty times a second."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.out, self.done, self.most = out, threading.Event(), dict.fromkeys([*GROUPS, "resumable"], 0)

    def run(self) -> None:
        """Look until it is done."""
        while not self.done.wait(0.05):
            self.look()

    def look(self) -> None:
        """Look once."""
        for group, pattern in (*GROUPS.items(), ("resumable", ".work/*/train-checkpoints")):
            try:
                size = sum(folder_bytes(folder) for folder in self.out.glob(pattern))
            except FileNotFoundError:
                continue  # renamed while it was looked at
            self.most[group] = max(self.most[group], size)


def small_recipe() -> Recipe:
    """The quickstart for a few steps a stage, saving often."""
    changes = [f"stages.{number}.tokens=60k" for number in range(3)]
    return load_recipe(
        "quickstart", [*changes, "train.save_strategy=steps", "train.save_steps=8", "train.use_cpu=true"]
    )


def whole_run() -> dict[str, Any]:
    from lifelong.pipeline import run_recipe

    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "run"
        recipe = small_recipe()
        speed = Speed(None, 1.0, recipe.objective, recipe.sequence_length, steps=5)
        plan = plan_recipe(recipe, speed=speed, text=True)
        watch = Watch(out)
        watch.start()
        started = time.monotonic()
        result = run_recipe(recipe, out)
        wall = time.monotonic() - started
        watch.done.set()
        watch.join()
        watch.look()
        disk = {group: (getattr(plan.disk, group), size) for group, size in watch.most.items()}
        for group, (expected, size) in disk.items():
            print(f"disk, {group:10} plan {expected / 1e6:.3f} MB, there {size / 1e6:.3f} MB: {expected / size:.3f}")
        again = plan_recipe(recipe, speed=Speed(None, 1.0, recipe.objective, recipe.sequence_length, steps=5)).seconds
        seconds = ((plan.seconds or 0.0) + (again or 0.0)) / 2  # before and after: others use the cores too
        spent = result.cost.seconds
        print(f"time of training and evaluation: plan {seconds:.1f} s, run {spent:.1f} s: {seconds / spent:.3f}")
        print(f"  the whole run took {wall:.1f} s: tokenising, growing, saving and reporting come on top")
    return {"disk": disk, "time": {"plan": seconds, "run": spent, "wall": wall}}


def main() -> None:
    """Print planned and measured side by side; exit 1 where memory is out by more than 15 %."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=[*SHAPES, *HELD])
    parser.add_argument("--checkpoint", help="its shape in every precision, instead of the shapes of this file")
    parser.add_argument("--part", choices=["memory", "run"], nargs="+", default=["memory", "run"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=[*SHAPES, *HELD], nargs="+")
    usual = ["cuda"] if DEVICE == "cuda" else ["tensors", "resident"]
    parser.add_argument("--how", choices=["cuda", "tensors", "resident"], nargs="+", default=usual)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.how[0], options.checkpoint)
        return
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    names = options.only or list(SHAPES if options.checkpoint is None else HELD)
    found: dict[str, Any] = {}
    if "memory" in options.part:
        found["memory"] = memory(names, options.how, options.checkpoint)
    if "run" in options.part and options.checkpoint is None:
        found |= whole_run()
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    out = [
        name
        for name, entry in found.get("memory", {}).items()
        if (peak := entry.get("cuda", entry.get("tensors"))) and abs(entry["plan"]["total"] / peak - 1) > LIMIT
    ]
    if out:
        raise SystemExit(f"out by more than {LIMIT:.0%}: {', '.join(out)}")


if __name__ == "__main__":
    main()
