"""What strangers wrote into a card or a run folder reaches a terminal, a Markdown file or a figure as text alone."""

import io
import json
import os
import shutil
import stat

import pytest
from rich.console import Console
from rich.table import Table

from lifelong.cli import terminal
from lifelong.errors import CorruptionError, StorageError, printable
from lifelong.files import atomic_files, read_sealed, write_sealed
from lifelong.ledger.folder import RunFolder
from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import read_records, record_hash
from lifelong.ledger.storage import storage_faults
from lifelong.lineage.merge import merge_stage
from lifelong.recipe.files import read_recipe_file
from lifelong.records import Front
from lifelong.report import write_report
from lifelong.report.view import markdown_safe
from lifelong.report.write import markdown
from lifelong.stream.cards.summary import add_domain
from lifelong.train.arguments import check_train_section
from tests.support import run_cli

ESCAPES = "\x1b]0;pwned\x07 red \x1b[31m left\u202e \x9b5m"


def test_a_licence_does_not_steer_the_terminal(tmp_path, monkeypatch, capsys):
    (tmp_path / "domains").mkdir()
    card = {"name": "evil", "source": {"files": "x.jsonl"}, "licence": ESCAPES}
    (tmp_path / "domains" / "evil.yaml").write_text(json.dumps(card))
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "domain", "list") == 0
    shown = capsys.readouterr().out
    assert "]0;pwned" in shown
    assert printable(shown) == shown


def test_a_message_does_not_either(tmp_path, monkeypatch, capsys):
    assert run_cli(monkeypatch, "check", f"{tmp_path}/{ESCAPES}") == 2
    shown = capsys.readouterr().err
    assert "pwned" in shown
    assert printable(shown) == shown


def test_colours_of_our_own_stay(monkeypatch):
    table = Table()
    table.add_column("x")
    table.add_row(f"[red]ours[/red] {ESCAPES}")
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    console.print(terminal._Printable(table))
    assert "\x1b[31mours" in console.file.getvalue()
    assert "\x1b]0" not in console.file.getvalue()


@pytest.mark.parametrize("text", ["<img src=x onerror=1>", "a|b", "![x](http://there/p.png)", "a\nb", "`x`", "**x**"])
def test_names_are_no_markup_in_the_report(finished, text):
    from dataclasses import replace

    shown = markdown(replace(read_history(finished), name=text))
    heading = shown.splitlines()[0]
    assert heading == f"# {markdown_safe(text)}"
    assert text not in heading
    assert "<img" not in shown


def test_committed_files_have_the_usual_mode(finished):
    mask = os.umask(0)
    os.umask(mask)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (finished / "stages").rglob("*") if path.is_file()}
    assert [path for path, mode in modes.items() if mode != 0o666 & ~mask] == []
    assert any(path.name == "model.safetensors" for path in modes)


@pytest.mark.parametrize("damage", ["missing", "a folder", "cut"])
def test_merge_names_the_weights_that_are_not_there(run, tmp_path, damage):
    name = read_records(run)[-1].name
    weights = RunFolder(run).model(name) / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if damage == "a folder":
        weights.mkdir()
    elif damage == "cut":
        weights.write_bytes(content[:1000])
    with pytest.raises(CorruptionError, match=r"model.safetensors: (missing|cannot be read|its content differs)"):
        merge_stage(run, read_recipe_file(run).to_plain(), 0.5, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", ["before.json", "losses.json", "history.json", "samples.json", "recipe.yaml"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_report_reads_nothing_that_was_changed(run, name, damage):
    path = RunFolder(run).stage(read_records(run)[-1].name).path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CorruptionError, match=r"missing|differs from what was committed|was changed after"):
        read_history(run)


def test_losses_that_no_record_lists_are_not_read(run):
    first = RunFolder(run).stage(read_records(run)[1].name)
    expected = read_history(run).matrix
    shutil.copyfile(first.losses, first.losses_before)
    assert read_history(run).matrix == expected


@pytest.mark.parametrize("damage", ["other figures", "no JSON", "a list", "other keys"])
def test_what_was_measured_afterwards_is_verified_too(run, damage):
    record = read_records(run)[-1]
    front = Front(record.name, record.domain, record_hash(record), ())
    path = RunFolder(run).front(record.name)
    write_sealed(path, front.to_json())
    assert read_history(run).fronts == (front,)
    changed = {**read_sealed(path), "sha256": "0" * 64}
    content = {"no JSON": "]", "a list": "[3]", "other keys": '{"x": 1}'}.get(damage, json.dumps(changed))
    path.write_text(content)
    history = read_history(run)
    assert history.fronts == ()
    assert "differs from what was written: left out" in history.notes[-1]
    path.write_text(json.dumps(front.to_json()))  # as an older version wrote it
    assert read_history(run).fronts == (front,)


def test_a_report_is_written_whole_or_not_at_all(finished, tmp_path, monkeypatch):
    history, out = read_history(finished), tmp_path / "report"
    write_report(history, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr("lifelong.report.write.page", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    message = f"report '{out}': the disk is full; [0-9,]+ bytes are free"
    with pytest.raises(StorageError, match=message), storage_faults(out, f"report '{out}'", "again"):
        write_report(history, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_other_files_of_the_folder_stay(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with atomic_files(tmp_path) as made:
        (made / "new.txt").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "new.txt"]


def test_a_domain_that_is_being_added_leaves_nothing_beside_the_cards(tmp_path, monkeypatch):
    (tmp_path / "x.txt").write_text("a text\n\n" * 90)
    seen = []

    def killed(domain, tokenizer, **_):
        seen.extend(tmp_path.glob("domains/*"))
        raise KeyboardInterrupt

    monkeypatch.setattr("lifelong.stream.cards.summary.describe_domain", killed)
    with pytest.raises(KeyboardInterrupt):
        add_domain("x", files=[str(tmp_path / "x.txt")], out=tmp_path / "domains")
    assert seen == []
    assert not list(tmp_path.glob("domains/.*"))


def test_a_token_is_not_part_of_a_recipe():
    (line,) = check_train_section({"hub_token": "hf_secret", "learning_rate": 1e-3})
    assert "train.hub_token: is decided by the environment (HF_TOKEN)" in line
    assert "secret" not in line
