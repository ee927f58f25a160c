"""Self-generated memory: tokens a second beside `transformers.generate`, and what stored targets add to it.

The forms take turns in one process, at the same batch and length, from the start token; a ratio is the median of those
within a turn, in processor seconds, so that what else the machine does is not in it.
`generate` stops at no token, as the streams do not. The last figure is a training step whose replayed rows have stored
targets, beside a plain step on the same rows.

    python -m benchmarks.generate [--model CHECKPOINT] [--batch 8] [--length 256] [--rounds 5]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from lifelong.inherit.cache import CacheSettings, CacheWriter, TargetCache, block_keys
from lifelong.inherit.distiller import Distiller
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.sparse import TauSampler, scheme_to_json
from lifelong.inherit.teachers.memory import MemoryTeacher, StoredTeacher
from lifelong.lm.checkpoint import load_model
from lifelong.lm.head import loss_head
from lifelong.replay.generate import Round, StreamShape, Writing, write_round
from lifelong.replay.settings import GenerateSection
from lifelong.stream.collator import Collator, PackedRow

DRAFT = {"vocab_size": 32_000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6}


def model_of(source: str | None) -> Any:
    """A checkpoint, or a random model whose head is as large a part of it as in small models that are in use."""
    if source is not None:
        return load_model(source, "clm")
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DRAFT, num_attention_heads=4))


def writing_of(model: Any, batch: int, length: int, block: int, *, stored: bool) -> Writing:
    """Streams of the start token alone; nothing ends a text."""
    return Writing(
        StreamShape(batch * length // block, length, batch, block),
        GenerateSection(tokens=batch * length),
        seed=1,
        starts=[np.array([1], np.int32)],
        end_ids=frozenset(),
        vocab_size=model.config.vocab_size,
        scheme=TauSampler(1 / 20) if stored else None,
    )


def by_transformers(model: Any, batch: int, length: int) -> None:
    """The same number of tokens by `generate`, from the whole distribution."""
    with torch.no_grad():
        model.generate(
            torch.ones((batch, 1), dtype=torch.long), attention_mask=torch.ones((batch, 1), dtype=torch.long),
            min_new_tokens=length - 1, max_new_tokens=length - 1, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    """Of the processor, for one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def in_turns(forms: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each form; they take turns, and the first turn does not count."""
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 1):
        for name, work in forms.items():
            found = seconds(work)
            if turn:
                taken[name].append(found)
    return taken


def ratio(taken: dict[str, list[float]], form: str, other: str) -> dict[str, float]:
    """Of two forms within each turn."""
    found = [one / two for one, two in zip(taken[form], taken[other], strict=True)]
    return {"median": statistics.median(found), "lowest": min(found), "highest": max(found)}


def step_forms(model: Any, made: Round, block: int, folder: Path) -> dict[str, Callable[[], object]]:
    """A forward and backward pass on the written rows: plain, and with their stored targets."""
    collator = Collator("clm", block, pad_id=0)
    rows = [PackedRow(block=part, domain_id=0, is_replay=True, mask_key=0) for part in made.blocks(block)]
    batch = collator(rows)
    settings = CacheSettings(
        scheme_to_json(TauSampler(1 / 20)), 1.0, model.config.vocab_size, "", "", "clm", sequence_length=block
    )
    writer = CacheWriter(folder, settings)
    for key, targets in zip(block_keys(batch), made.targets, strict=True):
        writer.add(key, targets)
    writer.finish()
    teacher = MemoryTeacher(StoredTeacher([TargetCache(folder)]))
    distiller = Distiller(teacher, make_schedule("constant", alpha=1.0), on="replay")
    trained = copy.deepcopy(model).train().requires_grad_(True)

    def step(*, taught: bool) -> None:
        with loss_head(trained, "clm"):
            inheritance = distiller.for_batch(batch, progress=0.0, step=0) if taught else None
            trained(**batch, inheritance=inheritance).loss.backward()
        trained.zero_grad(set_to_none=True)

    return {"plain step": lambda: step(taught=False), "step on self-generated memory": lambda: step(taught=True)}


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    model, length = model_of(given.model).eval(), given.length
    plain = writing_of(model, given.batch, length, length, stored=False)
    stored = replace(plain, scheme=TauSampler(1 / 20))
    cut = writing_of(model, given.batch, length, length // 4, stored=True)
    whole, short = Collator("clm", length, pad_id=0), Collator("clm", length // 4, pad_id=0)
    transformers.set_seed(0)
    taken = in_turns(
        {
            "transformers.generate": lambda: by_transformers(model, given.batch, length),
            "streams": lambda: write_round(model, plain, 0, whole),
            "streams, targets kept": lambda: write_round(model, stored, 0, whole),
            "streams, quarters take a pass": lambda: write_round(model, cut, 0, short),
        },
        given.rounds,
    )
    with tempfile.TemporaryDirectory() as folder:
        made = write_round(model, stored, 0, whole)
        taken |= in_turns(step_forms(model, made, length, Path(folder) / "cache"), given.rounds)
        size = sum(path.stat().st_size for path in (Path(folder) / "cache").rglob("*") if path.is_file())
    tokens = given.batch * length
    found = {name: statistics.median(values) for name, values in taken.items()}
    forward = found["plain step"] / 3
    print(json.dumps({
        "processor seconds": found,
        "tokens a second": {name: tokens / value for name, value in list(found.items())[:4]},
        "throughput beside transformers.generate (>= 0.8)": ratio(taken, "transformers.generate", "streams"),
        "targets kept, time beside streams (<= 1.15)": ratio(taken, "streams, targets kept", "streams"),
        "with the pass, time beside streams": ratio(taken, "streams, quarters take a pass", "streams"),
        "step on self-generated memory (<= 1.05)": ratio(
            taken, "step on self-generated memory", "plain step"
        ),
        "a written token beside a trained one, by FLOPs": found["streams"] / forward,
        "bytes of targets a token": size / tokens,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
