"""Speed and memory of the stream: tokenising against raw encode_batch, resident memory against corpus size.

    python benchmarks/stream.py [--megabytes 1 10 100] [--repeat 3] [--vocab 8192] [--out stream.json]
        [--only throughput|memory] [--throughput-megabytes 20]

The text is the source of the standard library, repeated with variation (every repetition swaps words, so
that no two documents are equal). Each size runs in a process of its own. `anonymous` is memory that the
process itself holds; `resident` also counts pages of files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SEQUENCE_LENGTH = 512


def texts_of(megabytes: float) -> Any:
    from lifelong.stream.cards.sources.python_text import read_installed

    documents = [text for _, text in read_installed("stdlib_code")]
    chance, size = random.Random(0), 0
    while True:
        for text in documents:
            words = text.split(" ")
            for _ in range(len(words) // 20):
                i, j = chance.randrange(len(words)), chance.randrange(len(words))
                words[i], words[j] = words[j], words[i]
            varied = " ".join(words)
            yield varied
            size += len(varied)
            if size >= megabytes * 1e6:
                return


def write_corpus(folder: Path, megabytes: float) -> Path:
    data = folder / f"corpus-{megabytes:g}.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for text in texts_of(megabytes):
            file.write(json.dumps({"text": text}) + "\n")
    card = folder / f"corpus-{megabytes:g}.yaml"
    valid = folder / "valid.jsonl"
    valid.write_text(json.dumps({"text": "held out"}) + "\n", encoding="utf-8")
    card.write_text(
        json.dumps({"source": {"files": [data.name], "valid": [valid.name], "test": [valid.name]}}),
        encoding="utf-8",
    )
    return card


def measure_throughput(card: Path, tokenizer: Any, repeat: int) -> dict[str, float]:
    from lifelong.stream.cards.documents import read_documents
    from lifelong.stream.cards.domain import load_domain
    from lifelong.stream.tokenize import tokenize_domain
    from lifelong.stream.tokenizers.encoding import _batches

    domain = load_domain(card)
    texts = [document.text for document in read_documents(domain, "train")]
    size = sum(len(text.encode()) for text in texts) / 1e6
    raw, whole = [], []
    for number in range(repeat + 1):
        started = _clocks()
        for batch in _batches(texts):
            tokenizer.backend_tokenizer.encode_batch(batch, add_special_tokens=False)
        middle = _clocks()
        with tempfile.TemporaryDirectory() as cache:
            tokenize_domain(domain, "train", tokenizer, sequence_length=SEQUENCE_LENGTH, cache_dir=Path(cache))
        if number:  # the first round warms the caches of the tokenizer and of the files
            raw.append([b - a for a, b in zip(started, middle, strict=True)])
            whole.append([b - a for a, b in zip(middle, _clocks(), strict=True)])
    wall, cpu = ([one[i] / other[i] for one, other in zip(raw, whole, strict=True)] for i in (0, 1))
    return {
        "megabytes": size,
        "encode_batch_mb_per_second": size / statistics.median(seconds for seconds, _ in raw),
        "tokenize_domain_mb_per_second": size / statistics.median(seconds for seconds, _ in whole),
        "ratio": statistics.median(wall),
        "lowest_ratio": min(wall),
        "highest_ratio": max(wall),
        "cpu_ratio": statistics.median(cpu),
    }


def _clocks() -> tuple[float, float]:
    """Seconds that passed, and seconds that all threads of this process worked."""
    return time.perf_counter(), time.process_time()


def measure_memory(card: Path, tokenizer_dir: Path) -> dict[str, float]:
    from lifelong.replay.dataset import StageDataset
    from lifelong.stream.cards.domain import load_domain
    from lifelong.stream.collator import Collator
    from lifelong.stream.tokenize import tokenize_domain
    from lifelong.stream.tokenizers.load import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_dir)
    peak = _Peak()
    with tempfile.TemporaryDirectory(dir=card.parent) as cache, peak:
        started = time.perf_counter()
        domain = load_domain(card)
        store = tokenize_domain(domain, "train", tokenizer, sequence_length=SEQUENCE_LENGTH, cache_dir=Path(cache))
        seconds = time.perf_counter() - started
        tokenising = peak.take()
        rows = 20_000
        dataset = StageDataset(store, None, num_steps=rows // 16, blocks_per_step=16)
        collate = Collator.for_tokenizer(tokenizer, "clm", SEQUENCE_LENGTH)
        collate([dataset[0]])
        started = time.perf_counter()
        for step in range(rows // 16):
            collate([dataset[step * 16 + slot] for slot in range(16)])
        per_second = rows / (time.perf_counter() - started)
        training = peak.take()
        return {
            "tokens": store.num_tokens,
            "seconds": seconds,
            "tokenising_anonymous_mb": tokenising[0],
            "tokenising_resident_mb": tokenising[1],
            "reading_anonymous_mb": training[0],
            "reading_resident_mb": training[1],
            "rows_per_second": per_second,
        }


class _Peak:
    """Highest resident memory since the last look, sampled every 20 ms."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._highest = (0.0, 0.0)
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            now = _resident()
            self._highest = (max(self._highest[0], now[0]), max(self._highest[1], now[1]))

    def take(self) -> tuple[float, float]:
        highest, self._highest = self._highest, _resident()
        return highest

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _resident() -> tuple[float, float]:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return tuple(int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "VmRSS"))  # type: ignore[return-value]


def show_throughput(folder: Path, tokenizer: Any, arguments: argparse.Namespace) -> dict[str, float]:
    speed = measure_throughput(write_corpus(folder, arguments.throughput_megabytes), tokenizer, arguments.repeat)
    print(f"{os.cpu_count()} cores, vocabulary {arguments.vocab}, {speed['megabytes']:.0f} MB")
    print(f"  encode_batch     {speed['encode_batch_mb_per_second']:7.2f} MB/s")
    print(
        f"  tokenize_domain  {speed['tokenize_domain_mb_per_second']:7.2f} MB/s, ratio {speed['ratio']:.3f} "
        f"({speed['lowest_ratio']:.3f} to {speed['highest_ratio']:.3f}), of processor seconds {speed['cpu_ratio']:.3f}",
        flush=True,
    )
    return speed


def show_memory(folder: Path, sizes: list[float]) -> dict[str, Any]:
    heads = ("corpus MB", "tokens", "seconds", "tokenising MB", "reading MB", "rows/s")
    print("".join(f"{head:>14}" for head in heads), flush=True)
    memory = {}
    for megabytes in sizes:
        card = write_corpus(folder, megabytes)
        command = [sys.executable, __file__, "--memory-of", str(card), str(folder / "tokenizer")]
        row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        memory[f"{megabytes:g}"] = row
        cells = (
            f"{megabytes:g}",
            f"{row['tokens']:,}",
            f"{row['seconds']:.1f}",
            f"{row['tokenising_anonymous_mb']:.0f}",
            f"{row['reading_anonymous_mb']:.0f}",
            f"{row['rows_per_second']:.0f}",
        )
        print("".join(f"{cell:>14}" for cell in cells), flush=True)
        card.with_suffix(".jsonl").unlink()
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1, 10, 100])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--throughput-megabytes", type=float, default=20)
    parser.add_argument("--only", choices=("throughput", "memory"))
    parser.add_argument("--memory-of", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(measure_memory(*arguments.memory_of)))
        return
    from lifelong.stream.cards.domain import load_domain
    from lifelong.stream.tokenize import train_tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        domain = load_domain("python-stdlib")
        tokenizer = train_tokenizer([domain], vocab_size=arguments.vocab, max_bytes=8_000_000)
        tokenizer.save_pretrained(folder / "tokenizer")
        found = {}
        if arguments.only != "memory":
            found["throughput"] = show_throughput(folder, tokenizer, arguments)
        if arguments.only != "throughput":
            found["memory"] = show_memory(folder, arguments.megabytes)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
