"""Every kind of source keeps the contract, and a new one is one file in the folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lifelong.errors import InputError
from lifelong.stream.cards import sources
from lifelong.stream.cards.documents import read_documents, source_fingerprint
from lifelong.stream.cards.domain import Domain, domain_schema, load_domain
from lifelong.stream.cards.sources import Source, source_kinds
from lifelong.stream.tokenize import tokenize_domain, train_tokenizer
from tests.support import run_cli

LINES = [f"line {i} of a list in the card, which says {i * 7} and no more" for i in range(120)]
NEW_KIND = '''
from typing import ClassVar

from lifelong.stream.cards.sources import Source


class LinesSource(Source):
    """Documents that stand in the card itself."""

    title: ClassVar[str] = "lines"

    lines: tuple[str, ...]
    valid: tuple[str, ...] | None = None

    def read(self, card, split, reading):
        for number, line in enumerate(self.lines if split == "train" else getattr(self, split)):
            yield f"{card.name} line {number}", line


SOURCE = LinesSource
'''


@pytest.fixture
def lines_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A card of a kind that is one new file on the path of the plugins."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "lines.py").write_text(NEW_KIND, encoding="utf-8")
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(plugins)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIFELONG_DOMAINS", str(tmp_path))
    Domain.model_rebuild(force=True)  # cards were read before there was the file
    card = tmp_path / "mine.yaml"
    card.write_text(json.dumps({"source": {"lines": LINES}, "licence": "CC0-1.0"}), encoding="utf-8")
    yield card
    monkeypatch.undo()
    sys.modules.pop(f"{sources.PACKAGE}.lines", None)
    Domain.model_rebuild(force=True)


@pytest.mark.parametrize("kind", source_kinds())
def test_a_kind_is_named_by_its_file_and_by_one_of_its_keys(kind: str) -> None:
    source = source_kinds()[kind]
    assert issubclass(source, Source)
    assert source.title
    assert source.__doc__
    assert source.model_fields[kind].is_required()
    others = [key for other in source_kinds() if other != kind for key in source.model_fields if key == other]
    assert not others, "the key of a kind tells it from all others"
    assert source.__name__ in domain_schema()["$defs"]


def test_a_new_kind_is_read_with_all_that_a_card_says(lines_card: Path) -> None:
    domain = load_domain("mine")
    assert domain.source.kind == "lines"
    keys = {split: [document.key for document in read_documents(domain, split)] for split in ("train", "valid", "test")}
    assert sum(map(len, keys.values())) == len({key for split in keys.values() for key in split}) == len(LINES)
    before = source_fingerprint(domain, "train")
    lines_card.write_text(json.dumps({"source": {"lines": LINES, "valid": ["held out"]}}), encoding="utf-8")
    own = load_domain(lines_card)
    assert [document.text for document in read_documents(own, "valid")] == ["held out"]
    assert source_fingerprint(own, "train") != before == source_fingerprint(domain, "train")


def test_faults_of_a_new_kind_have_line_path_and_nearest_name(lines_card: Path) -> None:
    lines_card.write_text("source:\n  lines: [a]\n  vaild: [b]\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"mine\.yaml:3: source\.vaild: unknown key; did you mean 'valid'\? Known: lines, valid"
    ):
        load_domain(lines_card)
    lines_card.write_text("source:\n  lins: [a]\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"exactly one of files, hub, lines, python_text .* did you mean 'lines'"):
        load_domain(lines_card)
    assert "LinesSource" in domain_schema()["$defs"]


def test_a_new_kind_is_listed_shown_added_and_tokenised(
    lines_card: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(monkeypatch, "domain", "list") == 0
    assert any({"mine", "CC0-1.0", "lines"} <= set(line.split()) for line in capsys.readouterr().out.splitlines())
    assert run_cli(monkeypatch, "domain", "show", "mine", "--json") == 0
    assert sum(json.loads(capsys.readouterr().out)["documents"].values()) == len(LINES)
    setting = f"source.lines={json.dumps(LINES)}"
    assert run_cli(monkeypatch, "domain", "add", "other", "--set", setting, "--set", "citation=a list") == 0
    added = load_domain("other")
    assert (added.source, added.citation) == (load_domain("mine").source, "a list")
    assert run_cli(monkeypatch, "domain", "add", "third") == 2
    assert "give exactly one of files, a hub data set, lines, or a kind of python text" in capsys.readouterr().err

    tokenizer = train_tokenizer([added], vocab_size=280)
    store = tokenize_domain(added, "train", tokenizer, sequence_length=32, cache_dir=lines_card.parent / "cache")
    assert len(store) > 10
