"""How long an interrupted stage of ten million rows takes to its first new step.

A run of one stage is begun on a corpus whose tokenised rows are replaced by `--rows` rows of 16 tokens, and killed
after a few steps. Its checkpoint is then told to be of a step near the end, so that nearly all rows lie before it, and
the same call is timed from its beginning (the libraries are loaded) to the first new optimizer step; beside it the
same with a checkpoint near the beginning, which has nothing to skip.

    python benchmarks/resume.py [--rows 10000000] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import torch
import transformers

from lifelong.pipeline import run_recipe
from lifelong.recipe import Recipe, parse_recipe
from lifelong.records import RunObserver, TrainPoint

LENGTH, BATCH, BATCH_ROWS = 16, 16, 256


class ReachedError(Exception):
    """The step that was waited for."""


class Until(RunObserver):
    """Ends the run at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, point: TrainPoint) -> None:
        """Compare the step."""
        if point.step >= self.step:
            raise ReachedError


def write_rows(path: Path, rows: int, vocabulary: int) -> None:
    """A store of `rows` blocks of 16 random tokens, as `BlockWriter` lays it out."""
    kind = pa.list_(pa.uint16() if vocabulary <= 1 << 16 else pa.int32())
    schema = pa.schema([("ids", kind), ("starts", pa.list_(pa.int32())), ("offsets", pa.list_(pa.int32()))])
    draw = np.random.default_rng(0)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for first in range(0, rows, BATCH_ROWS):
            count = min(BATCH_ROWS, rows - first)
            ends = np.arange(count + 1, dtype=np.int32)
            ids = draw.integers(0, vocabulary, count * LENGTH).astype(kind.value_type.to_pandas_dtype())
            zeros = pa.ListArray.from_arrays(pa.array(ends), pa.array(np.zeros(count, dtype=np.int32)))
            columns = [pa.ListArray.from_arrays(pa.array(ends * LENGTH), pa.array(ids)), zeros, zeros]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def recipe_of(folder: Path, rows: int) -> Recipe:
    """One stage that reads every row once."""
    text = "".join(
        f'{{"text": "line {i} of a small corpus that is read once, number {i * 7919 % 997}"}}\n' for i in range(600)
    )
    for split in ("train", "valid", "test"):
        (folder / f"rows.{split}.jsonl").write_text(text)
    sources = "files: [rows.train.jsonl], valid: [rows.valid.jsonl], test: [rows.test.jsonl]"
    (folder / "rows.yaml").write_text(f"name: rows\nsource: {{{sources}}}\nlicence: CC0-1.0\n")
    return parse_recipe({
        "name": "rows",
        "model": {"family": "llama", "layers": 2, "hidden_size": 32, "heads": 2, "intermediate_size": 64},
        "tokenizer": {"train": {"kind": "bpe", "vocab_size": 300}}, "sequence_length": LENGTH,
        "stages": [{"domain": str(folder / "rows.yaml"), "tokens": rows * LENGTH}],
        "train": {"per_device_train_batch_size": BATCH, "logging_steps": 1, "save_strategy": "steps", "save_steps": 4,
                  "use_cpu": True},
        "evaluate": {"tokens": 500, "samples": 0},
    })  # fmt: skip


def interrupted_run(folder: Path, rows: int) -> tuple[Recipe, Path]:
    """A run that died after the fourth step of its stage."""
    recipe, out = recipe_of(folder, rows), folder / "run"
    run_until(recipe, out, 1)
    (store,) = (out / ".cache/blocks").glob("*/blocks.arrow")
    write_rows(store, rows, 300)
    run_until(recipe, out, 6)
    return recipe, out


def move_checkpoint(out: Path, step: int) -> None:
    """Tell the checkpoint of step 4 that it is of another step."""
    (checkpoint,) = (out / ".work/00-rows/train-checkpoints").glob("checkpoint-4")
    late = checkpoint.rename(checkpoint.with_name(f"checkpoint-{step}"))
    for name, change in (("trainer_state.json", {"global_step": step}), ("stage_state.json", {"sizes": {}})):
        content = json.loads((late / name).read_text())
        (late / name).unlink()  # the copy shares its files with the original
        (late / name).write_text(json.dumps({**content, **change}))


def run_until(recipe: Recipe, out: Path, step: int) -> float:
    """Seconds until the step."""
    started = time.monotonic()
    try:
        run_recipe(recipe, out, Until(step))
    except ReachedError:
        return time.monotonic() - started
    raise SystemExit("the run came to its end")


def main() -> None:
    """Print seconds to the first new step, by way of skipping."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    late = options.rows // BATCH - 100
    seconds: dict[int, list[float]] = {4: [], late: []}
    with tempfile.TemporaryDirectory() as name:
        recipe, out = interrupted_run(Path(name), options.rows)
        for _ in range(options.rounds):
            for step, values in seconds.items():
                copy = Path(shutil.copytree(out, Path(name) / "copy", copy_function=os.link))
                move_checkpoint(copy, step)
                values.append(run_until(recipe, copy, step + 1))
                shutil.rmtree(copy)
    for step, values in seconds.items():
        print(f"{options.rows:,} rows, from step {step:,}: {statistics.median(values):.2f} s (median of {len(values)})")
    print(f"ratio {statistics.median(b / a for a, b in zip(*seconds.values(), strict=True)):.2f}")
    if options.json:
        options.json.write_text(json.dumps({"rows": options.rows, "seconds_by_step": seconds}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
