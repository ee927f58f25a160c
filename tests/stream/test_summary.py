from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lifelong.errors import InputError
from lifelong.report.domain_table import summary_table
from lifelong.stream.cards import summary as summaries
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import Domain, list_domains, load_domain
from lifelong.stream.cards.summary import add_domain, describe_domain

from .conftest import sentences


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose only cards are those in ./domains."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr("lifelong.stream.cards.domain.shipped_folder", lambda kind: empty)
    monkeypatch.delenv("LIFELONG_DOMAINS", raising=False)
    monkeypatch.delenv("LIFELONG_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def test_summary_counts_what_is_there(tokenizer: Any, known: Path, write_card: Callable[..., Domain]) -> None:
    texts = sentences(20, 400)
    domain = write_card("d", [*texts, *texts[:40], *(text + " More." for text in texts[50:60])], licence="CC0-1.0")
    summary = describe_domain(domain, tokenizer)
    documents = [d for split in ("train", "valid", "test") for d in read_documents(domain, split)]
    assert sum(summary.documents.values()) == len(documents) == 450
    assert sum(summary.bytes.values()) == sum(d.num_bytes for d in documents)
    assert summary.tokens == sum(len(tokenizer(d.text)["input_ids"]) for d in documents)
    assert summary.fertility == pytest.approx(summary.tokens / sum(len(d.text.split()) for d in documents))
    assert summary.exact_duplicates == pytest.approx(40 / 450, abs=0.03)
    assert summary.near_duplicates == pytest.approx(10 / 450, abs=0.015)
    assert len(summary.samples) == 3
    assert summary.samples[0].startswith(texts[0][:50]) or summary.samples[0] in "".join(texts)
    assert any("dedup: near" in warning for warning in summary.warnings)
    assert json.loads(json.dumps(summary.to_json()))["licence"] == "CC0-1.0"


def test_overlap_with_known_domains_and_their_held_out_text(known: Path) -> None:
    texts = sentences(21, 300)
    (known / "domains").mkdir()
    _write(known / "domains" / "old.jsonl", texts)
    (known / "domains" / "old.yaml").write_text("source: {files: [old.jsonl]}", encoding="utf-8")
    (known / "domains" / "gone.yaml").write_text("source: {files: [gone.jsonl]}", encoding="utf-8")
    held_out = [d.text for d in read_documents(load_domain("old"), "valid")]
    _write(known / "new.jsonl", [*sentences(22, 200), *held_out, texts[0].replace("the", "that", 1)])
    card, summary = add_domain("new", files=["new.jsonl"], held_out=0.01, test=["new.jsonl"], valid=["new.jsonl"])
    found = {(overlap.domain, overlap.split): overlap.share for overlap in summary.overlaps}
    assert found["old", "valid"] == 1.0
    assert summary.unread == ["gone"]
    assert any("held-out text of old (valid) is in it" in warning for warning in summary.warnings)
    assert card.is_file()


def test_add_domain_writes_a_card_that_works_from_anywhere(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (known / "data").mkdir()
    _write(known / "data" / "a.jsonl", sentences(23, 100))
    card, summary = add_domain("mine", files=["data/*.jsonl"], licence="CC0-1.0", dedup="exact", citation=None)
    assert card == Path("domains/mine.yaml")
    assert summary.documents["train"] > 80
    domain = load_domain("mine")
    assert (domain.licence, domain.dedup, domain.citation) == ("CC0-1.0", "exact", None)
    assert [item["name"] for item in list_domains()] == ["mine"]
    monkeypatch.chdir(known / "data")
    assert len(list(read_documents(load_domain(known / card), "train"))) == summary.documents["train"]
    monkeypatch.chdir(known)
    monkeypatch.setenv("LIFELONG_DATA", str(known / "data"))
    shared, _ = add_domain("shared", files=["data/a.jsonl"])
    assert "$LIFELONG_DATA/a.jsonl" in shared.read_text(encoding="utf-8")
    python, _ = add_domain("prose", python_text="reference_prose")
    assert load_domain("prose").source.model_dump() == {"python_text": "reference_prose"}
    assert python.is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "../x", "files": ["a.jsonl"]}, "is not a valid name"),
        ({"name": "x"}, "exactly one of"),
        ({"name": "x", "files": ["a.jsonl"], "hub": "a/b"}, "exactly one of"),
        ({"name": "x", "files": ["nothing.jsonl"]}, "matches no file"),
        ({"name": "x", "files": ["bad.jsonl"]}, r"bad\.jsonl:2"),
        ({"name": "x", "files": ["a.jsonl"], "text_fild": "t"}, "did you mean 'text_field'"),
        ({"name": "x", "files": ["a.jsonl"], "dedup": "nearly"}, r"x\.yaml \(not written\):\d: dedup: input should be"),
        ({"name": "x", "files": ["folder"]}, r"is a folder; name its files, for example .*folder/\*\.jsonl\.gz"),
    ],
)
def test_add_domain_writes_nothing_when_it_fails(known: Path, arguments: Any, message: str) -> None:
    _write(known / "a.jsonl", sentences(24, 100))
    (known / "folder").mkdir()
    (known / "bad.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n', encoding="utf-8")
    with pytest.raises(InputError, match=message):
        add_domain(**arguments)
    assert not (known / "domains").exists()


def test_add_domain_does_not_overwrite(known: Path) -> None:
    _write(known / "a.jsonl", sentences(25, 100))
    card, _ = add_domain("x", files=["a.jsonl"])
    before = card.read_bytes()
    with pytest.raises(InputError, match="there is a card of this name"):
        add_domain("x", files=["a.jsonl"], licence="other")
    assert card.read_bytes() == before


def test_a_domain_is_shown_in_80_columns_whatever_its_text_holds(known: Path) -> None:
    texts = ["A text with [/bold] and [red] and \\[brackets] in it. " * 8, *sentences(26, 60)]
    _write(known / "a.jsonl", texts)
    _, summary = add_domain("x", files=["a.jsonl"], licence="see [/LICENCE]")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(summary))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert "[/bold] and [red]" in " ".join(shown.split())
    assert "see [/LICENCE]" in shown
    assert f"of {summary.compared:,} documents (0.0%)" in shown
    assert "sample 3" in shown


def test_of_a_large_text_a_sample_is_read_and_full_reads_it_once(write_card, monkeypatch):
    domain = write_card("large", sentences(5, 3000), licence="CC0-1.0")
    exact = describe_domain(domain, against=[])
    assert (exact.sampled, exact.warnings) == (1.0, [])
    monkeypatch.setattr(summaries, "COMPARED_BYTES", 100_000)
    monkeypatch.setattr(summaries, "PIECE_BYTES", 10_000)
    estimated = describe_domain(domain, against=[])
    assert estimated.sampled < 0.5
    assert "--full" in estimated.warnings[0]
    for split in ("train", "valid", "test"):
        close = 0.05 if split == "train" else 0.5
        assert abs(estimated.documents[split] / exact.documents[split] - 1) < close
        assert abs(estimated.bytes[split] / exact.bytes[split] - 1) < close
    reads = []
    read = type(domain.source).read
    monkeypatch.setattr(type(domain.source), "read", lambda *given: reads.append(given) or read(*given))
    full = describe_domain(domain, against=[], full=True)
    assert (full.documents, full.bytes, full.sampled) == (exact.documents, exact.bytes, 1.0)
    assert len(reads) == 1
