"""Time to the first step of a run, and bytes of text read until then, against the size of the corpus.

    python -m benchmarks.first_step --sizes 1MB 100MB 20GB

Corpora of generated JSON lines, a checkpoint of a tiny model and of a tokenizer, and `lifelong run` in a process of its
own, which is ended when it has logged its first step. What is read is counted by the kernel (`rchar` of `/proc`), less
what the smallest corpus takes, since most of that is the program itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lifelong.stream.cards.domain import parse_size

WORDS = [f"{a}{b}{c}" for a in "btkmsr" for b in "aeiou" for c in ("n", "ll", "rd", "sh", "ng")]
CHUNK_BYTES = 8 << 20
PATIENCE = 3600


def write_corpus(path: Path, size: int) -> None:
    """JSON lines of random words, the same chunk again and again with the number of each document in it."""
    draw, lines, length = random.Random(0), [], 0
    while length < min(CHUNK_BYTES, size):
        lines.append(
            json.dumps({"text": "@@@@@@@@ " + " ".join(draw.choices(WORDS, k=draw.randrange(50, 400)))}) + "\n"
        )
        length += len(lines[-1])
    chunk = "".join(lines).encode()
    with path.open("wb") as file:
        for number in range(max(1, size // len(chunk))):
            file.write(chunk.replace(b"@@@@@@@@", b"%08d" % number))


def write_checkpoint(folder: Path, corpus: Path) -> None:
    """A model of some thousand parameters with a tokenizer of the words."""
    import transformers

    from lifelong.stream.cards.domain import load_domain
    from lifelong.stream.tokenize import train_tokenizer

    card = corpus.with_suffix(".yaml")
    tokenizer = train_tokenizer([load_domain(card, allow_paths=True)], vocab_size=400, max_bytes=200_000)
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def first_step(folder: Path, card: Path, checkpoint: Path) -> tuple[float, int]:
    """Seconds of a run until its first step is logged, and the bytes that it has read."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        json.dumps(
            {
                "name": "first-step",
                "model": {"checkpoint": str(checkpoint)},
                "sequence_length": 256,
                "stages": [{"domain": str(card), "tokens": "50M"}],
                "train": {"per_device_train_batch_size": 4, "logging_steps": 1, "use_cpu": True},
                "evaluate": {"tokens": 2000},
            }
        )
    )
    out = folder / "run"
    environment = {**os.environ, "LIFELONG_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "lifelong", "run", str(recipe), "--out", str(out)],
        env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = out / "metrics.jsonl"
    try:
        while process.poll() is None and time.monotonic() - begun < PATIENCE:
            if metrics.is_file() and '"phase": "train"' in metrics.read_text():
                seconds = time.monotonic() - begun
                counts = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
                return seconds, int(counts["rchar"])
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    raise SystemExit(f"{card}: no step was logged")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1MB", "10MB", "100MB", "1GB"])
    parser.add_argument("--folder", type=Path, help="where the corpora are written; a temporary folder")
    given = parser.parse_args()
    least = None
    print("corpus            time to the first step   text read until then")
    for named in given.sizes:
        with tempfile.TemporaryDirectory(dir=given.folder) as made:
            folder = Path(made)
            card = folder / "corpus.yaml"
            card.write_text(json.dumps({"name": "corpus", "source": {"files": ["corpus.jsonl"]}, "licence": "CC0-1.0"}))
            write_corpus(folder / "corpus.jsonl", int(parse_size(named)))
            write_checkpoint(folder / "model", folder / "corpus.jsonl")
            seconds, read = first_step(folder, card, folder / "model")
            least = read if least is None else least
            size = (folder / "corpus.jsonl").stat().st_size
            print(f"{size / 1e6:12,.0f} MB {seconds:20.1f} s {(read - least) / 1e6:18.1f} MB more", flush=True)


if __name__ == "__main__":
    main()
