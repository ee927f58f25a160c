"""Small corpora and a small tokenizer, made in code."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lifelong.stream.cards.domain import Domain, load_domain
from lifelong.stream.tokenize import train_tokenizer

_TEXT = """the model reads a stream of text and keeps what it learned while new words arrive every day
from far away places where people write long letters about weather trees rivers numbers and machines"""
_WORDS = _TEXT.split()


def sentences(seed: int, count: int, words: int = 40) -> list[str]:
    """`count` different texts of random words."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(_WORDS, k=words)) + f" number {seed}-{i}." for i in range(count)]


@pytest.fixture
def write_card(tmp_path: Path) -> Callable[..., Domain]:
    """Writes rows to a JSON lines file and a card for it, and loads the card."""

    def write(name: str, texts: list[Any], **settings: Any) -> Domain:
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows, encoding="utf-8")
        card = {"name": name, "source": {"files": [f"{name}.jsonl"]}, **settings}
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(card), encoding="utf-8")
        return load_domain(path)

    return write


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A byte-level BPE tokenizer of 300 tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "a.txt").write_text("\n\n".join(sentences(1, 200)), encoding="utf-8")
    (folder / "a.yaml").write_text("source: {files: [a.txt]}", encoding="utf-8")
    return train_tokenizer([load_domain(folder / "a.yaml")], vocab_size=300, max_bytes=100_000)
