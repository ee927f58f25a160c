"""Thousands of cards: the fast listing says what reading each card would say, and near names are found."""

import difflib
import os
import time
from pathlib import Path

import pytest

from lifelong.errors import InputError, did_you_mean, nearest, refusals
from lifelong.schema import YAML_BYTES
from lifelong.stream.cards.domain import known_domains, list_domains, load_domain
from tests.support import run_cli

CARDS = {
    "fine": "source: {files: x.jsonl}\nlicence: CC0-1.0\ndescription: one\n",
    "named": "name: named\nsource: {hub: a/b}\n",
    "misnamed": "name: other\nsource: {files: x}\n",
    "broken": "source: [",
    "wrong": "source: {files: x}\nheld_out: 3\n",
    "list": "[1]",
    "empty": "",
    "pathed": "source: {files: x}\npath: /etc/passwd\n",
}


@pytest.fixture
def domains(tmp_path, monkeypatch):
    (tmp_path / "domains").mkdir()
    for name, text in CARDS.items():
        (tmp_path / "domains" / f"{name}.yaml").write_text(text)
    (tmp_path / "domains" / "binary.yml").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)


def test_the_listing_agrees_with_reading_every_card(domains):
    listed = {entry["name"]: entry for entry in list_domains()}
    assert sorted(listed) == known_domains()
    assert {"binary", *CARDS} <= set(listed)
    for name, entry in listed.items():
        faults = list(refusals(load_domain, name))
        assert [entry[key] for key in ("fault",) if key in entry] == faults
        if not faults:
            domain = load_domain(name)
            assert entry["source"] == domain.source.kind
            assert (entry["licence"], entry["description"]) == (domain.licence, domain.description)


def test_a_long_list_is_plain_lines(domains, tmp_path, monkeypatch, capsys):
    for number in range(600):
        (tmp_path / "domains" / f"c{number}.yaml").write_text("source: {files: x}\n")
    assert run_cli(monkeypatch, "domain", "list") == 0
    assert "c599  not stated  files" in capsys.readouterr().out.splitlines()


def test_a_card_that_is_huge_when_written_out_or_no_file_at_all_holds_no_listing_up(domains, monkeypatch, capsys):
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 4))
    Path("domains/nested.yaml").write_text(f"a0: &a0 x\n{levels}description: *a3\n")
    Path("domains/long.yaml").write_text(f"source: {{files: x}}\ndescription: {'x' * YAML_BYTES}\n")
    os.mkfifo("domains/pipe.yaml")
    listed = {entry["name"]: entry for entry in list_domains()}
    assert "aliases" in listed["nested"]["fault"]
    assert "larger than" in listed["long"]["fault"]
    assert "pipe" not in listed
    assert run_cli(monkeypatch, "list", "domains") == 0
    assert {"nested  broken: its description is not a text", "long  broken: is not a YAML mapping"} <= {
        "  ".join(line.split(maxsplit=1)) for line in capsys.readouterr().out.splitlines()
    }


def test_the_nearest_of_ten_thousand_names_is_found_at_once():
    names = [f"corpus-{number:05d}" for number in range(10_000)]
    started = time.process_time()
    found = nearest("corpus-0123", names)
    assert difflib.SequenceMatcher(None, "corpus-0123", found).ratio() > 0.95
    assert nearest("nothing like it", names) is None
    assert "did you mean 'corpus-04711'" in did_you_mean("corpus-04711x", names)
    assert time.process_time() - started < 2
    with pytest.raises(InputError, match="there is no domain"):
        load_domain("nobody")
