from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lifelong.errors import InputError
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import Domain, domain_schema, known_domains, load_domain
from lifelong.stream.cards.sources.files import FileSource


def _card(folder: Path, text: str, name: str = "bio") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_card_of_the_contract(tmp_path: Path) -> None:
    path = _card(
        tmp_path,
        'name: bio\nsource: {files: ["data/a.jsonl.gz"], valid: ["b.jsonl"]}\n'
        "text_field: body\nlicence: CC-BY-4.0\nmax_document_bytes: 2 MiB\n",
    )
    domain = load_domain(path)
    assert isinstance(domain.source, FileSource)
    assert domain.source.files == ("data/a.jsonl.gz",)
    assert (domain.name, domain.text_field, domain.max_document_bytes) == ("bio", "body", 2 * 2**20)
    assert domain.folder == tmp_path


def test_every_fault_is_told_at_once_with_line_path_and_nearest_name(tmp_path: Path) -> None:
    path = _card(
        tmp_path,
        "name: bio\nsource:\n  files: [a.jsonl]\n  vaild: [b.jsonl]\ntext_fild: x\nheld_out: 0.9\ndedup: fuzzy\n",
    )
    with pytest.raises(InputError) as error:
        load_domain(path)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert f"{path}:4: source.vaild: unknown key; did you mean 'valid'?" in lines[0]
    assert any(f"{path}:5: text_fild: unknown key; did you mean 'text_field'?" in line for line in lines)
    assert any(f"{path}:6: held_out" in line and "given: 0.9" in line for line in lines)
    assert any(f"{path}:7: dedup" in line and "'near'" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: ../evil\nsource: {files: [a]}", "is not a valid name"),
        ("name: a b\nsource: {files: [a]}", "is not a valid name"),
        ("name: bio", r"source: missing"),
        ("source: {files: [a], hub: b}", "exactly one of"),
        ("source: {fils: [a]}", "did you mean 'files'"),
        ("source: [a]", "exactly one of"),
        ("source: {files: []}", "source.files"),
        ("source: {python_text: stdlib}", "stdlib_code"),
        ("source: {hub: 3}", "source.hub"),
        ("source: {files: [3]}", "source.files.0"),
        ("- a", "a card is a mapping"),
        ("a: b: c", ":1: not valid YAML"),
        ("", "a card is a mapping"),
        ("source: {files: [a]}\npath: /x", "unknown key"),
        ("source: {files: [a]}\nmax_document_bytes: many", "max_document_bytes"),
    ],
)
def test_wrong_card(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_domain(_card(tmp_path, text))
    assert str(tmp_path / "bio.yaml") in str(error.value)


def test_a_binary_card_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bio.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        load_domain(tmp_path / "bio.yaml")


def test_lookup_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = tmp_path / "named"
    (tmp_path / "domains").mkdir()
    named.mkdir()
    _card(named, "source: {files: [x.jsonl]}", "mine")
    monkeypatch.setenv("LIFELONG_DOMAINS", str(named))
    assert load_domain("mine").path == named / "mine.yaml"
    _card(tmp_path / "domains", "source: {files: [y.jsonl]}", "mine")
    assert load_domain("mine").path == tmp_path / "domains" / "mine.yaml"
    assert {"mine", "wiki"} <= set(known_domains())


def test_unknown_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="did you mean 'wiki'"):
        load_domain("wikki")
    with pytest.raises(InputError, match="is not a valid domain name"):
        load_domain("two words")
    _card(tmp_path, "source: {files: [x]}")
    with pytest.raises(InputError, match=r"did you mean 'bio\.yaml'"):
        load_domain(tmp_path / "boi.yaml")
    (tmp_path / "domains").mkdir()
    _card(tmp_path / "domains", "name: other\nsource: {files: [x]}", "mine")
    with pytest.raises(InputError, match="calls itself 'other', not 'mine'"):
        load_domain("mine")


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_card: Callable[..., Domain]) -> None:
    write_card("base", [f"text {i}" for i in range(50)])

    def first(pattern: str) -> str:
        path = _card(tmp_path, f"source: {{files: ['{pattern}']}}")
        return next(iter(read_documents(load_domain(path), "train"))).text

    monkeypatch.chdir(tmp_path.parent)
    assert first("base.jsonl") == first("b*.jsonl") == first(str(tmp_path / "base.jsonl"))
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    assert first("$SOME_FOLDER/base.jsonl") == first("${SOME_FOLDER}/base.jsonl") == first("base.jsonl")
    monkeypatch.delenv("SOME_FOLDER")
    with pytest.raises(InputError, match="SOME_FOLDER, which is not set"):
        first("$SOME_FOLDER/base.jsonl")
    for escaping in ("../secret.jsonl", "a/../../b.jsonl", "$HOME/../x.jsonl"):
        with pytest.raises(InputError, match=r"must not contain '\.\.'"):
            first(escaping)
    with pytest.raises(InputError, match=r"matches no file.*did you mean 'base\.jsonl'"):
        first("bsae.jsonl")
    with pytest.raises(InputError, match="there is no folder"):
        first("nowhere/base.jsonl")


def test_schema_names_every_key() -> None:
    schema = domain_schema()
    assert {"name", "source", "text_field", "licence", "dedup"} <= set(schema["properties"])
    assert "path" not in schema["properties"]


def test_reading_a_card_loads_nothing_heavy() -> None:
    code = (
        "import sys; from lifelong.stream.cards.domain import load_domain; load_domain('wiki');"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\[\]", shown.stdout.strip())
