"""Long lives: a run of thousands of stages checked and reported, and thousands of domain cards listed.

    python -m benchmarks.load [--stages 2000] [--domains 20] [--cards 10000] [--stream 200,40] [--json FILE]

Run and cards are generated: a whole run folder with ledger, losses, curves and facts, without weights. Every verb is a
process of its own; its processor seconds and its peak of resident memory are those of the operating system, with the
libraries that it imports, whose bytecode an earlier process has written, as an installation does.

`--stream D,T` trains instead: T stages of one step each in which D domains are measured, and the resident memory after
each stage; what grows with both would show here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import yaml

from lifelong.files import file_hash, write_bytes, write_json, write_sealed, write_text
from lifelong.ledger.folder import INITIAL, RunFolder
from lifelong.ledger.history import write_losses
from lifelong.ledger.ledger import measurements
from lifelong.ledger.line import Line
from lifelong.records import RunHistory, StageRecord
from tests.report.generated import generated_history

FACTS, PROBES = 8, (0, 5, 10)


def write_run(out: Path, num_domains: int, num_stages: int) -> None:
    """A run folder as `lifelong run` leaves it, but for the weights; the recipe beside the newest stage alone."""
    history = generated_history(num_domains, num_stages, documents=5)
    run, lines = RunFolder(out), list[Line]()
    stages = [{"domain": domain.split("-", 1)[1], "tokens": 1000} for domain in history.matrix.stages]
    recipe = {"name": "generated", "stages": stages, "objective": "clm"}
    write_text(run.recipe, yaml.safe_dump(recipe, default_flow_style=None))
    write_sealed(run.environment, {"python": "3", "packages": {}})
    first = replace(history.stages[0], index=-1, name=INITIAL, domain="", cost={}, replay={}, tokens=0)
    for record in (first, *history.stages):
        lines.append(_write_stage(run, history, record, lines[-1].sha256 if lines else ""))
    write_bytes(run.ledger, b"".join(line.content + b"\n" for line in lines))


def _write_stage(run: RunFolder, history: RunHistory, record: StageRecord, parent: str) -> Line:
    folder, index = run.stage(record.name), record.index
    write_losses(folder.losses, history.losses[index] if index >= 0 else history.initial_losses)
    write_json(folder.samples, [])
    if index >= 0:
        curve = {
            "train": [asdict(point) for point in history.train[index]],
            "probes": [asdict(point) for point in history.probes[index][:3]],
        }
        write_json(folder.history, {**curve, "facts": _facts(index)})
    if index == len(history.stages) - 1:
        write_bytes(folder.recipe, run.recipe.read_bytes())
    files = {run.name_of(path): file_hash(path) for path in sorted(folder.path.iterdir())}
    line = Line.of(replace(record, parent=parent, files=files))
    write_bytes(folder.record, line.content + b"\n")
    write_sealed(folder.measured, measurements(replace(record, committed_at="2026-01-01T00:00:00+00:00"), {}))
    return line


def _facts(stage: int) -> dict[str, Any]:
    points = [
        {"step": step, "tokens": step * 100_000, "fact": fact, "log_probability": -3 - stage / 1000 - fact / 10}
        for step in PROBES
        for fact in range(FACTS)
    ]
    facts = [{"prompt": f"The capital of {fact} is", "target": str(fact)} for fact in range(FACTS)]
    return {"facts": facts, "injected_at": [100_000] if stage == 0 else [], "points": points}


def write_cards(folder: Path, count: int) -> None:
    """Cards of one file each; the file is not there."""
    folder.mkdir(parents=True)
    for number in range(count):
        text = f"name: c{number}\nsource:\n  files: c{number}.jsonl\nlicence: CC0-1.0\ndescription: card {number}\n"
        (folder / f"c{number}.yaml").write_text(text, encoding="utf-8")


def measured(verb: Sequence[str], where: Path) -> dict[str, float]:
    """Exit code, processor and clock seconds, and peak of resident megabytes of a verb of the command line."""
    started, pid = time.perf_counter(), os.fork()
    if pid == 0:
        os.chdir(where)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        path = str(Path(__file__).resolve().parents[1])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONPYCACHEPREFIX": str(where / "bytecode")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        os.execve(sys.executable, [sys.executable, "-m", "lifelong", *verb], environment)
    _, status, usage = os.wait4(pid, 0)
    return {
        "exit_code": os.waitstatus_to_exitcode(status),
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "clock_seconds": time.perf_counter() - started,
        "resident_mb": usage.ru_maxrss / 1024,
    }


def print_resident(here: Path, domains: int, stages: int) -> None:
    """Print resident megabytes after every stage of a real run in which many domains are watched."""
    import torch

    from lifelong.pipeline import run_recipe
    from lifelong.recipe import parse_recipe
    from lifelong.records import RunObserver

    torch.set_num_threads(1)
    draw = random.Random(0)
    for number in range(domains):
        lines = [
            json.dumps({"text": " ".join("".join(draw.choices(ascii_lowercase, k=5)) for _ in range(60))})
            for _ in range(12)
        ]
        for split, part in (("train", lines[:8]), ("valid", lines[8:10]), ("test", lines[10:])):
            (here / f"d{number}.{split}.jsonl").write_text("\n".join(part))
        splits = f"files: d{number}.train.jsonl, valid: d{number}.valid.jsonl, test: d{number}.test.jsonl"
        (here / f"d{number}.yaml").write_text(f"name: d{number}\nsource: {{{splits}}}\n")
    cards = [str(here / f"d{number}.yaml") for number in range(domains)]
    recipe = parse_recipe({
        "name": "long", "sequence_length": 32,
        "model": {"family": "llama", "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 16},
        "tokenizer": {"train": {"kind": "bpe", "vocab_size": 300}},
        "stages": [{"domain": cards[index % 2], "tokens": 128} for index in range(stages)], "watch": cards[2:],
        "train": {"per_device_train_batch_size": 4, "use_cpu": True}, "evaluate": {"tokens": 100, "samples": 0},
    })  # fmt: skip

    class Weighing(RunObserver):
        def stage_committed(self, _: StageRecord) -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**20:.0f}", end=" ", flush=True)

    print("resident MB after each stage:", end=" ")
    run_recipe(recipe, here / "run", Weighing())
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=2000)
    parser.add_argument("--domains", type=int, default=20)
    parser.add_argument("--cards", type=int, default=10_000)
    parser.add_argument("--stream", help="domains,stages of a real run whose memory is measured instead")
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    if arguments.stream:
        with tempfile.TemporaryDirectory() as name:
            print_resident(Path(name), *map(int, arguments.stream.split(",")))
        return
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        write_run(here / "run", arguments.domains, arguments.stages)
        write_cards(here / "domains", arguments.cards)
        write_run(here / "small", 2, 2)
        measured(["report", "small"], here)
        figures: dict[str, Any] = {
            " ".join(verb): measured(verb, here)
            for verb in (
                ["--version"], ["check", "run"], ["report", "run"], ["domain", "list"], ["list", "domains"],
                ["domain", "show", "c500x"],
            )
        }  # fmt: skip
        for verb, values in figures.items():
            print(f"{verb:>20}  " + "  ".join(f"{key} {value:.2f}" for key, value in values.items()))
        sizes = {path.name: path.stat().st_size for path in sorted((here / "run" / "report").iterdir())}
        for file, size in {**sizes, "ledger.jsonl": (here / "run" / "ledger.jsonl").stat().st_size}.items():
            print(f"{file:>20}  {size:,} bytes")
    if arguments.json:
        arguments.json.write_text(json.dumps({**vars(arguments), "json": None, **figures, "sizes": sizes}, indent=1))


if __name__ == "__main__":
    main()
