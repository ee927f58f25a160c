"""What many tests need: small corpora and recipes, the command line in this process, an observer that dies."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from lifelong.records import RunObserver, TrainPoint

WORDS = {
    "sea": ["wave", "ship", "sail", "salt", "harbour", "tide", "gull", "anchor", "storm", "deck", "rope", "captain"],
    "farm": ["field", "cow", "plough", "barn", "wheat", "hen", "tractor", "fence", "milk", "soil", "seed", "harvest"],
    "law": [
        "court",
        "judge",
        "statute",
        "appeal",
        "contract",
        "clause",
        "party",
        "evidence",
        "ruling",
        "tort",
        "writ",
        "fee",
    ],
    "town": ["street", "shop", "tram", "square", "bridge", "lamp", "market", "crowd", "tower", "bell", "clock", "gate"],
}


def write_domain(folder: Path, name: str, documents: int = 60) -> Path:
    """A corpus of random sentences over a domain's own words, and its card."""
    draw = random.Random(name)
    for split, count in (("train", documents), ("valid", 6), ("test", 6)):
        with (folder / f"{name}.{split}.jsonl").open("w") as stream:
            for _ in range(count):
                text = ". ".join(" ".join(draw.choices(WORDS[name], k=7)) for _ in range(8))
                stream.write(json.dumps({"text": f"The {name}: {text}."}) + "\n")
    card = folder / f"{name}.yaml"
    sources = ", ".join(
        f"{key}: [{name}.{split}.jsonl]" for key, split in (("files", "train"), ("valid", "valid"), ("test", "test"))
    )
    card.write_text(f"name: {name}\nsource: {{{sources}}}\nlicence: CC0-1.0\n")
    return card


def recipe_data(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two stages, the second grows; inheritance and replay on."""
    cards = {name: str(folder / f"{name}.yaml") for name in WORDS}
    data = {
        "name": "tiny",
        "model": {"family": "llama", "layers": 2, "hidden_size": 24, "heads": 2, "intermediate_size": 40},
        "tokenizer": {"train": {"kind": "bpe", "vocab_size": 320}},
        "sequence_length": 32,
        "stages": [
            {"domain": cards["sea"], "tokens": 4000},
            {"domain": cards["farm"], "tokens": 4000, "expand": {"layers": 3, "hidden_size": 36, "heads": 3}},
        ],
        "inherit": {"alpha": 0.5, "until": 0.5},
        "replay": {"memory_tokens": 2000, "share": 0.25},
        "train": {"learning_rate": 3e-3, "per_device_train_batch_size": 8, "logging_steps": 2, "use_cpu": True},
        "evaluate": {"tokens": 600},
    }
    return {**data, **changes}


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """Exit code of a verb, run in this process."""
    from lifelong.cli import main

    monkeypatch.setattr(sys, "argv", ["lifelong", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


class Dies(RunObserver):
    """Ends a run with an error at a step of a phase of a stage."""

    def __init__(self, stage: int, step: int, phase: str = "train") -> None:
        self.at, self.stage = (stage, phase, step), -1

    def stage_started(self, index: int, shape: Any, parameters: int) -> None:
        self.stage = index

    def stepped(self, point: TrainPoint) -> None:
        if (self.stage, point.phase, point.step) == self.at:
            raise ZeroDivisionError


def tiny_checkpoint(folder: Path, cards: Path, chat_template: str | None = None, seed: int = 0) -> Path:
    """A random causal model with a tokenizer of the corpora, as a checkpoint folder; one with a template is for chat."""
    import torch
    import transformers

    from lifelong.stream.cards.domain import load_domain
    from lifelong.stream.tokenize import train_tokenizer

    domains = [load_domain(cards / f"{name}.yaml") for name in WORDS]
    tokenizer = train_tokenizer(domains, kind="bpe", vocab_size=320, max_bytes=100_000, seed=0)
    tokenizer.chat_template = chat_template
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
