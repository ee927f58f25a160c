"""Every shipped card is valid, is found by its name, and says what its text may be used for."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifelong.plugins import shipped_folder
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import known_domains, load_domain
from lifelong.stream.cards.sources.files import FileSource
from lifelong.stream.cards.sources.python_text import PythonTextSource

CARDS = sorted(shipped_folder("domains").glob("*.y*ml"))


def test_there_are_cards() -> None:
    assert {"wiki", "news", "reviews", "bio", "cs", "python-reference"} <= {card.stem for card in CARDS}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_card_is_complete(card: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIFELONG_DOMAINS", raising=False)
    domain = load_domain(card.stem)
    assert domain == load_domain(card)
    assert domain.name in known_domains()
    assert domain.licence
    assert domain.citation
    assert domain.description
    if isinstance(domain.source, FileSource):
        assert domain.source.own_splits == {"train", "valid", "test"}
        assert all(pattern.startswith("$") for pattern in domain.source.files), "a card names no path of one machine"


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_text_installed_with_python_is_there(card: Path) -> None:
    domain = load_domain(card)
    if isinstance(domain.source, PythonTextSource):
        keys = {split: {d.key for d in read_documents(domain, split)} for split in ("train", "valid", "test")}
        assert all(keys.values())
        assert not keys["train"] & (keys["valid"] | keys["test"])
    else:
        assert domain.source.model_fields_set & {"files", "hub"}
