"""A card that somebody else wrote: it reads what lies beside it, and nothing else without being allowed."""

import os
from pathlib import Path

import pytest
import yaml

from lifelong.errors import InputError
from lifelong.evaluate.task import load_task
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.cards.summary import add_domain
from tests.support import run_cli

ROW = '{"text": "a row of somebody else"}\n'


@pytest.fixture
def secret(tmp_path):
    """A file and a folder that lie beside the card's folder."""
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "train.jsonl").write_text(ROW * 40)
    return folder


@pytest.fixture
def card(tmp_path, monkeypatch):
    """Writes a card, as it is when it was unpacked somewhere."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "own.jsonl").write_text("".join(f'{{"text": "a row of its own, number {n}"}}\n' for n in range(90)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def write(**source) -> Path:
        path = folder / "d.yaml"
        path.write_text(yaml.safe_dump({"name": "d", "source": source}))
        return path

    return write


def read(path: Path) -> list[str]:
    return [document.text for document in read_documents(load_domain(path), "train")]


NOT_OF_ITS_OWN = {
    "a full path": ({"files": "{secret}/*.jsonl"}, "names files outside of its own:\n  source.files: /"),
    "a home folder": ({"files": "~/x.jsonl"}, "source.files: ~/x.jsonl"),
    "a variable of every shell": ({"files": "own.jsonl", "valid": "$HOME/x.jsonl"}, r"source.valid: \$HOME/x.jsonl"),
    "a folder by its full path": ({"hub": "{secret}"}, "source.hub: /"),
    "the folder above": ({"files": "../secret/train.jsonl"}, "must not contain"),
    "a hub folder above": ({"hub": "../secret"}, "'../secret' must not contain"),
    "a link to a file": ({"files": "link.jsonl"}, "link.jsonl is a link out of the folder"),
    "a link below a folder": ({"files": "**/*.jsonl"}, "is a link out of the folder"),
    "a link to a folder": ({"hub": "./link"}, "link is a link out of the folder"),
    "a hub folder with a link": ({"hub": "./corpus"}, "train.jsonl is a link out of the folder"),
    "a hub folder whose README names files elsewhere": (
        {"hub": "./readme"},
        "secret/train.jsonl' as its data, which is",
    ),
    "a pipe": ({"files": "pipe.jsonl"}, "is not a regular file"),
}


@pytest.mark.parametrize("attack", NOT_OF_ITS_OWN)
def test_a_card_reads_what_lies_beside_it_alone(card, secret, tmp_path, attack):
    source, reason = NOT_OF_ITS_OWN[attack]
    folder = tmp_path / "downloaded"
    (folder / "link.jsonl").symlink_to(secret / "train.jsonl")
    (folder / "link").symlink_to(secret)
    (folder / "corpus").mkdir()
    (folder / "corpus" / "train.jsonl").symlink_to(secret / "train.jsonl")
    (folder / "readme").mkdir()
    head = {"configs": [{"config_name": "default", "data_files": str(secret / "train.jsonl")}]}
    (folder / "readme" / "README.md").write_text(f"---\n{yaml.safe_dump(head)}---\n")
    os.mkfifo(folder / "pipe.jsonl")
    path = card(**{key: value.format(secret=secret) for key, value in source.items()})
    with pytest.raises(InputError, match=reason):
        read(path)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/stdin", "/proc/self/environ"])
def test_devices_are_no_corpora_even_where_a_card_may_name_them(card, device):
    path = card(files=device, format="text")
    with pytest.raises(InputError, match="is not a regular file"):
        list(read_documents(load_domain(path, allow_paths=True), "train"))


def test_links_within_the_folder_and_full_paths_below_it_are_its_own(card, tmp_path):
    folder = tmp_path / "downloaded"
    (folder / "again.jsonl").symlink_to("own.jsonl")
    rows = read(card(files="own.jsonl"))
    assert rows
    assert read(card(files="again.jsonl")) == rows
    assert read(card(files=str(folder / "own.jsonl"))) == rows


def test_what_was_allowed_once_is_remembered_by_its_name(card, secret, monkeypatch, capsys):
    path = card(files=str(secret / "train.jsonl"), valid="own.jsonl", test="own.jsonl")
    assert run_cli(monkeypatch, "domain", "check", path) == 2
    assert "lifelong domain check" in (message := capsys.readouterr().err)
    assert "--allow-paths" in message
    assert run_cli(monkeypatch, "domain", "check", path, "--allow-paths") == 0
    assert read(path) == [ROW[10:-3]] * 40
    with pytest.raises(InputError, match=r"source.files: .*/other.jsonl"):
        load_domain(card(files=str(secret / "other.jsonl")))


def test_cards_of_ones_own_name_what_they_like(card, secret, tmp_path, monkeypatch):
    (tmp_path / "domains").mkdir()
    (mine := tmp_path / "domains" / "d.yaml").write_bytes(card(files=str(secret / "train.jsonl")).read_bytes())
    assert read("d") == read(mine)
    monkeypatch.setenv("LIFELONG_DOMAINS", str(tmp_path / "downloaded"))
    assert read(tmp_path / "downloaded" / "d.yaml")


def test_a_card_that_was_added_here_needs_no_flag(card, secret, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes((tmp_path / "downloaded" / "own.jsonl").read_bytes())
    written, _ = add_domain("mine", files=[str(rows)], held_out=0.2, out=tmp_path / "elsewhere")
    assert str(rows) in written.read_text()
    assert read(written)


def test_a_task_of_somebody_else_is_held_to_the_same(card, tmp_path):
    path = tmp_path / "downloaded" / "task.yaml"
    split = {"train": "own.jsonl", "dev": "own.jsonl", "test": "/etc/hosts"}
    path.write_text(yaml.safe_dump({"name": "task", "domain": "d", "source": split}))
    with pytest.raises(InputError, match=r"(?s)task card .*source.test: /etc/hosts.*: put the card into ./tasks"):
        load_task(path)


@pytest.mark.parametrize("row", [b"\xff\xfesecret", b'{"text": ["secret"]}', b'{"text": 1234567}', b'["secret"]'])
def test_what_is_wrong_with_a_document_is_said_without_its_content(card, tmp_path, row):
    (tmp_path / "downloaded" / "own.jsonl").write_bytes(row + b"\n")
    with pytest.raises(InputError) as caught:
        read(card(files="own.jsonl"))
    assert not any(content in str(caught.value) for content in ("secret", "1234567", "0xff"))
