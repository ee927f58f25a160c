"""Growth of checkpoints: time and memory against writing the file alone, and error against published mappings.

Speed and memory: a source with random weights is grown from folder to folder, in a process of its own; the alternative
writes tensors of the grown shape, already in memory, with safetensors. Both take turns; medians of several rounds, and
one growth to the end with its verification.
Seconds are those of the wall and of the processors, without waiting for the disk to have it (fsync) on either side.
Memory is the peak of the process (VmRSS), over what it held before it began.

Error: what each mapping does to the function at the moment of growth, in true float64, and after one AdamW step.

    python benchmarks/expand.py [--rounds 5] [--cases gpt2 llama-1b] [--dir FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lifelong.expand import expand_checkpoint, expand_model, new_config, true_float64
from lifelong.expand.family import load_family
from lifelong.expand.lazy import empty_model, model_class_of, stored_shapes

GPT2_SMALL = {"family": "gpt2", "vocab": 50257, "layers": 12, "hidden_size": 768, "heads": 12, "dtype": "float32"}
LLAMA_1B = {
    "family": "llama", "vocab": 128256, "layers": 16, "hidden_size": 2048, "heads": 32, "kv_heads": 8,
    "intermediate_size": 8192, "dtype": "bfloat16",
}  # fmt: skip
TINYLLAMA = {
    "family": "llama", "vocab": 32000, "layers": 22, "hidden_size": 2048, "heads": 32, "kv_heads": 4,
    "intermediate_size": 5632, "dtype": "bfloat16",
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "gpt2": (GPT2_SMALL, {"layers": 24, "hidden_size": 1024, "heads": 16}),
    "llama-1.1b": (TINYLLAMA, {"hidden_size": 2560, "heads": 40, "kv_heads": 5, "intermediate_size": 7040}),
    "llama-1b": (LLAMA_1B, {"hidden_size": 3072, "heads": 48, "kv_heads": 12, "intermediate_size": 12288}),
}
MEGABYTE = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--dir", type=Path, help="where checkpoints are written (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/expand.json"))
    parser.add_argument("--measure", nargs=3, metavar=("whole|grow|write", "CASE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        speed = {case: compare_speed(case, Path(name), options.rounds) for case in options.cases}
    errors = published_mappings()
    print(f"{'case':10} {'target file':>12} {'write s, CPU':>12} {'grow s, CPU':>12} {'ratio, CPU':>12} "
          f"{'verify s, CPU':>13} {'memory':>9} {'verify':>9}")  # fmt: skip
    for case, figures in speed.items():
        print(
            f"{case:10} {figures['target_megabytes']:9.0f} MB {figures['write_seconds']:6.1f} "
            f"{figures['write_cpu']:5.1f} {figures['grow_seconds']:6.1f} {figures['grow_cpu']:5.1f} "
            f"{figures['ratio']:6.2f} {figures['cpu_ratio']:5.2f} {figures['verify_seconds']:7.1f} "
            f"{figures['verify_cpu']:5.1f} {figures['grow_peak_megabytes']:6.0f} MB "
            f"{figures['verify_peak_megabytes']:6.0f} MB"
        )
    print(f"\n{'mapping':58} {'theirs':>10} {'ours':>10}")
    for row in errors:
        print(f"{row['mapping']:58} {row['theirs']:10.1e} {row['ours']:10.1e}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"speed": speed, "errors": errors}, indent=1) + "\n")


# --- time and memory ----------------------------------------------------------------------------------------


def compare_speed(case: str, folder: Path, rounds: int) -> dict[str, float]:
    """Medians over rounds in which growing and writing alone take turns."""
    write_source(case, folder / "source")

    def run(kind: str) -> dict[str, float]:
        command = [sys.executable, __file__, "--measure", kind, case, str(folder)]
        settings = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"}  # as `lifelong expand` does
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=settings).stdout
        return json.loads(output.splitlines()[-1])

    whole = run("whole")  # once to the end, with the verification
    figures = [(run("grow"), run("write")) for _ in range(rounds)]
    shutil.rmtree(folder / "source")
    shutil.rmtree(folder / "grown")
    return {
        "write_seconds": statistics.median(write["seconds"] for _, write in figures),
        "grow_seconds": statistics.median(grow["seconds"] for grow, _ in figures),
        "ratio": statistics.median(grow["seconds"] / write["seconds"] for grow, write in figures),
        "write_cpu": statistics.median(write["cpu"] for _, write in figures),
        "grow_cpu": statistics.median(grow["cpu"] for grow, _ in figures),
        "cpu_ratio": statistics.median(grow["cpu"] / write["cpu"] for grow, write in figures),
        "grow_peak_megabytes": statistics.median(grow["peak_megabytes"] for grow, _ in figures),
        **{name: whole[name] for name in ("verify_seconds", "verify_cpu", "verify_peak_megabytes")},
        **{name: figures[0][1][name] for name in ("target_megabytes", "largest_tensors_megabytes")},
    }


def write_source(case: str, folder: Path) -> None:
    """A checkpoint of the case with random weights."""
    shape = dict(CASES[case][0])
    family, dtype = load_family(shape.pop("family")), getattr(torch, shape.pop("dtype"))
    config = new_config(family.name, vocab_size=shape.pop("vocab"), max_positions=1024, **shape)
    config.tie_word_embeddings = case != "llama-1.1b"
    config.dtype = dtype
    model_class = model_class_of(config, family.objective)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (torch.randn(size, generator=generator) * 0.02 if len(size) > 1 else torch.ones(size)).to(dtype)
        for name, size in stored_shapes(empty_model(model_class, config)).items()
    }
    folder.mkdir()
    config.architectures = [model_class.__name__]
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


class WrittenError(Exception):
    """Ends a growth when its files are written: the verification is measured once."""


def measure(kind: str, case: str, folder_name: str) -> dict[str, float]:
    """Seconds and peak memory of one growth, or of one plain write of the grown tensors."""
    folder = Path(folder_name)
    if kind == "write":
        files = sorted((folder / "grown").glob("*.safetensors"))
        weights = {name: value.clone() for file in files for name, value in load_file(file).items()}
        gc.collect()
        started, cpu = time.perf_counter(), time.process_time()
        save_file(weights, folder / "written.safetensors", metadata={"format": "pt"})
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        (folder / "written.safetensors").unlink()
        sizes = sorted(value.numel() * value.element_size() / MEGABYTE for value in weights.values())
        return {
            "seconds": seconds,
            "cpu": cpu,
            "target_megabytes": sum(sizes),
            "largest_tensors_megabytes": sum(sizes[-2:]),
        }
    expand_model(tiny("llama", {"layers": 1, "hidden_size": 16, "heads": 2}), layers=2)  # imports are not growth
    figures: dict[str, float] = {}

    def told(_text: str, fraction: float) -> None:
        if fraction == 1.0 and not figures:
            figures.update(seconds=time.perf_counter() - started, cpu=time.process_time() - cpu)
            figures["peak_megabytes"] = peak.bytes / MEGABYTE
            if kind == "grow":
                raise WrittenError

    with Peak() as peak:
        started, cpu = time.perf_counter(), time.process_time()
        with contextlib.suppress(WrittenError):
            out = folder / ("grown" if kind == "whole" else "again")
            expand_checkpoint(str(folder / "source"), out, targets=CASES[case][1], progress=told)
        ended, ended_cpu = time.perf_counter() - started, time.process_time() - cpu
    verified = {"verify_seconds": ended - figures["seconds"], "verify_cpu": ended_cpu - figures["cpu"]}
    verified |= {"verify_peak_megabytes": peak.bytes / MEGABYTE}
    return figures | (verified if kind == "whole" else {})


class Peak:
    """The peak of this process's own memory above where it stood at the start, sampled a hundred times a second."""

    def __enter__(self) -> Peak:
        self.start, self.bytes, self._stop = own_memory(), 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.01):
            self.bytes = max(self.bytes, own_memory() - self.start)


def own_memory() -> int:
    """Bytes of this process, mapped files among them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise SystemExit("VmRSS: this benchmark needs Linux")


# --- error of published mappings ----------------------------------------------------------------------------


def published_mappings() -> list[dict[str, Any]]:
    """Largest logit difference of reference forms, and of ours for the same target."""
    return [
        random_clones_of_bert(),
        zeroed_projections_of_olmo2("at growth", steps=0),
        zeroed_projections_of_olmo2("after one AdamW step", steps=1),
        appended_channels_of_llama(),
        duplicated_experts_of_mixtral(),
    ]


def random_clones_of_bert() -> dict[str, Any]:
    """bert2BERT's function-preserving initialisation: copies at random, columns divided by the number of copies.

    LayerNorm over unevenly copied channels has another mean and variance. Source: Chen et al. 2022, section 3.2.
    """
    model = tiny("bert", {"layers": 2, "hidden_size": 64, "heads": 4}, max_positions=64)
    generator = torch.Generator().manual_seed(0)
    chosen = torch.cat([torch.arange(64), torch.randint(0, 64, (32,), generator=generator)])
    heads = torch.cat([torch.arange(4), torch.randint(0, 4, (2,), generator=generator)])
    rows = (heads[:, None] * 16 + torch.arange(16)).reshape(-1)

    def shared(columns: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return columns[:, index] / torch.bincount(index)[index]

    def copied(name: str, value: torch.Tensor) -> torch.Tensor:
        if any(part in name for part in ("query", "key", "value")):
            return shared(value[rows], chosen) if value.dim() == 2 else value[rows]
        if name.endswith("attention.output.dense.weight"):
            return shared(value, rows)[chosen]
        if "transform.dense.weight" in name:
            return shared(value, chosen)[chosen]
        if "decoder.weight" in name or "intermediate.dense.weight" in name:
            return shared(value, chosen)
        if name.endswith("embeddings.weight"):
            return value[:, chosen]
        kept = "intermediate" in name or name.endswith(("predictions.bias", "decoder.bias", "_ids"))
        return value if kept else value[chosen]

    config = copy.deepcopy(model.config)
    config.hidden_size, config.num_attention_heads = 96, 6
    grown = {name: copied(name, value) for name, value in model.state_dict().items()}
    config.tie_word_embeddings = False
    large = type(model)(config).double()
    large.load_state_dict(grown)
    ours, _ = expand_model(model, hidden_size=128)
    return row("bert2BERT random clones, BERT 64 -> 96 (ours: 128)", model, large, ours)


def zeroed_projections_of_olmo2(when: str, *, steps: int) -> dict[str, Any]:
    """LLaMA-Pro's inserted copies with zero output projections, in a model that normalises behind them.

    The norm of zero divides by the root of its epsilon, and the first step throws the model off.
    Source: Wu et al. 2024, section 3.2.
    """
    model = tiny("olmo2", {"layers": 4, "hidden_size": 64, "heads": 4})
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = 6
    grown = {name: value for name, value in model.state_dict().items() if "layers." not in name}
    for new, old in enumerate((0, 1, 1, 2, 3, 3)):
        for name, value in model.state_dict().items():
            if name.startswith(f"model.layers.{old}."):
                inserted = new in (2, 5) and name.endswith(("o_proj.weight", "down_proj.weight"))
                grown[name.replace(f"layers.{old}.", f"layers.{new}.")] = value * 0 if inserted else value.clone()
    large = type(model)(config).double()
    large.load_state_dict(grown)
    ours, _ = expand_model(model, layers=6)
    for _ in range(steps):
        for each in (model, large, ours):
            one_step(each)
    return row(f"LLaMA-Pro's zeros on OLMo 2, 4 -> 6 layers, {when}", model, large, ours)


def appended_channels_of_llama() -> dict[str, Any]:
    """Zeros behind the channels of every head: rotary pairs are torn apart and scores divided by another root."""
    model = tiny("llama", {"layers": 2, "hidden_size": 64, "heads": 4})
    config = copy.deepcopy(model.config)
    config.head_dim = 32

    def appended(name: str, value: torch.Tensor) -> torch.Tensor:
        if any(part in name for part in ("q_proj", "k_proj", "v_proj")):
            return torch.nn.functional.pad(value.view(4, 16, -1), (0, 0, 0, 16)).reshape(128, -1)
        if "o_proj" in name:
            return torch.nn.functional.pad(value.view(-1, 4, 16), (0, 16)).reshape(-1, 128)
        return value

    grown = {name: appended(name, value) for name, value in model.state_dict().items()}
    large = type(model)(config).double()
    large.load_state_dict(grown)
    ours, _ = expand_model(model, head_dim=32)
    return row("zeros appended to heads, LLaMA head size 16 -> 32", model, large, ours)


def duplicated_experts_of_mixtral() -> dict[str, Any]:
    """Experts and router rows copied while as many are chosen as before: the same expert is chosen twice."""
    model = tiny("mixtral", {"layers": 2, "hidden_size": 64, "heads": 4, "experts": 4})
    naive, _ = expand_model(model, experts=8, experts_per_token=2, approximate=True)
    ours, _ = expand_model(model, experts=8)
    return row("duplicated experts, same top-2, Mixtral 4 -> 8 (ours: top-4)", model, naive, ours)


def tiny(family_name: str, shape: dict[str, int], *, max_positions: int = 128) -> Any:
    """A float64 model whose gains and weights are far from their initial values, as trained ones are."""
    family = load_family(family_name)
    config = new_config(
        family_name,
        vocab_size=256,
        max_positions=max_positions,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **shape,
    )
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = model_class_of(config, family.objective)(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.mul_(5)
    return model


def one_step(model: Any) -> None:
    """One step of AdamW at the usual rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    ids = tokens()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def tokens() -> torch.Tensor:
    """`[B,T]` the same random tokens for every model."""
    return torch.randint(3, 256, (4, 32), generator=torch.Generator().manual_seed(1))


def row(mapping: str, model: Any, theirs: Any, ours: Any) -> dict[str, Any]:
    """Largest differences of the logits from those of the model that did not grow, in true float64."""
    with true_float64(), torch.no_grad():
        before, other, own = (m.eval()(input_ids=tokens()).logits for m in (model, theirs, ours))
    difference: Callable[[torch.Tensor], float] = lambda logits: float((logits - before).abs().max())  # noqa: E731
    return {"mapping": mapping, "theirs": difference(other), "ours": difference(own)}


if __name__ == "__main__":
    main()
