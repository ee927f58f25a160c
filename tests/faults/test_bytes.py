"""What `lifelong check` finds: flipped bytes, missing files, foreign ones, damaged lines; and that it only reads."""

import pytest

from lifelong.errors import CorruptionError
from lifelong.ledger.ledger import Ledger, check_run, read_records
from tests.faults.flips import committed_files, unnoticed


def test_every_flipped_byte_is_found(run):
    flipped, missed = unnoticed(run, every=50_000)
    assert missed == []
    assert flipped >= 2 * len(committed_files(run)) > 80


def test_every_missing_file_is_found(run):
    for path in committed_files(run):
        aside = path.rename(run.parent / "aside")
        assert check_run(run), path
        aside.rename(path)
    assert check_run(run) == []


def test_every_cut_file_is_found(run):
    for path in committed_files(run):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        assert check_run(run), path
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["notes.txt", "stages/00-sea/model/extra.bin", "memory/02/x.arrow", "heldout/sea/y"])
def test_a_foreign_file_is_named(run, name):
    (run / name).write_text("mine")
    assert check_run(run) == [f"{name}: does not belong to the run"]


def test_files_of_file_managers_are_ignored(run):
    (run / "stages/.DS_Store").write_text("")
    assert check_run(run) == []


def test_a_torn_last_line_is_reported_by_readers_and_mended_by_the_next_writer(run):
    ledger = run / "ledger.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[:-40])
    assert "its last line is incomplete" in check_run(run)[0]
    assert len(read_records(run)) == 3
    assert ledger.read_bytes() == whole[:-40]
    with Ledger.open(run):
        pass
    assert ledger.read_bytes() == whole


def test_a_lost_ledger_is_written_again_from_the_stages(run):
    whole = (run / "ledger.jsonl").read_bytes()
    (run / "ledger.jsonl").unlink()
    assert "missing or empty" in check_run(run)[0]
    with Ledger.open(run):
        pass
    assert (run / "ledger.jsonl").read_bytes() == whole
    assert check_run(run) == []


def test_a_lost_record_is_written_again_from_the_ledger(run):
    record = run / "stages/01-farm/record.json"
    whole = record.read_bytes()
    record.unlink()
    with Ledger.open(run):
        pass
    assert record.read_bytes() == whole


def test_a_line_of_a_newer_version_asks_for_an_update(run):
    import hashlib
    import json

    ledger = run / "ledger.jsonl"
    first, *rest = ledger.read_bytes().split(b"\n")
    data = json.loads(first)
    del data["sha256"]
    body = json.dumps({**data, "mood": "good"}, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    line = b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'",' + body[1:]
    ledger.write_bytes(b"\n".join([line, *rest]))
    with pytest.raises(CorruptionError, match=r"a newer version of lifelong wrote this .key 'mood'."):
        read_records(run)


def test_a_removed_line_is_found(run):
    ledger = run / "ledger.jsonl"
    lines = ledger.read_bytes().split(b"\n")
    del lines[1]
    ledger.write_bytes(b"\n".join(lines))
    with pytest.raises(CorruptionError, match=r"ledger.jsonl:2: the line does not follow"):
        read_records(run)
