"""What a disk, an owner or a clock can do to a run: each fault has one message, code 2, and nothing is lost."""

import ctypes
import os
import resource
import shutil
import signal
import sys
import time
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from lifelong.cli import main
from lifelong.errors import CorruptionError, InputError, Interrupted, StorageError
from lifelong.files import write_json
from lifelong.ledger.ledger import Ledger, check_run, read_records
from lifelong.ledger.lock import hold
from lifelong.ledger.storage import storage_faults, storage_message
from lifelong.pipeline import commit, extend_run, run_recipe
from lifelong.recipe import parse_recipe
from lifelong.records import RunObserver
from lifelong.stream.packing import pack, write_blocks
from tests.faults.kills import comparable


def in_a_fork(work):
    """Exit code of `work` in a child: what it does to its limits and its user ends with it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            code = 2 if isinstance(error, StorageError) and "nothing that is committed is lost" in str(error) else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_cli(monkeypatch, capsys, *arguments):
    """Exit code and message of a command."""
    monkeypatch.setattr(sys, "argv", ["lifelong", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code, " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "largest", [12_000, pytest.param(400, marks=pytest.mark.slow), pytest.param(40_000, marks=pytest.mark.slow)]
)
def test_a_disk_that_takes_no_more_is_one_message_and_the_run_goes_on_later(
    short, finished_short, tmp_path, largest, capfd
):
    """The kernel refuses files beyond a size, whichever library writes them."""

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        short.run(tmp_path / "run")

    assert in_a_fork(limited) == 2
    assert "no file may be as large as this one" in capfd.readouterr().err
    short.run(tmp_path / "run")
    assert comparable(tmp_path / "run") == comparable(finished_short)


def test_a_full_disk_at_the_commit_keeps_what_is_committed(short, finished_short, tmp_path, monkeypatch):
    real, lines = Ledger._append, []

    def full(ledger, line):
        lines.append(line)
        if len(lines) == 2:
            raise OSError(28, "No space left on device", str(ledger.out / "ledger.jsonl"))
        real(ledger, line)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_append", full)
        with pytest.raises(
            StorageError, match=r"the disk is full \(.*ledger.jsonl\); .* bytes are free. Free some space"
        ):
            short.run(tmp_path / "run")
    short.run(tmp_path / "run")
    assert comparable(tmp_path / "run") == comparable(finished_short)


def test_a_folder_that_may_not_be_written_is_refused_and_can_still_be_read(run, capfd):
    def as_nobody():
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        assert check_run(run) == []
        with Ledger.open(run):
            pass

    for path in (*run.parents, *run.rglob("*")):  # root may write anywhere, and becomes somebody else
        if path.stat().st_uid == os.geteuid() and path != path.parent:
            path.chmod(0o755 if path.is_dir() else 0o444)
    run.chmod(0o555)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert in_a_fork(as_nobody) == 2
    assert "you may not write there" in capfd.readouterr().err
    run.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(30, "Read-only file system"), "the file system is read-only"),
        (OSError(5, "Input/output error"), "the disk failed to read or write"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), None),  # the disk takes what it is given
        (OSError(2, "No such file or directory"), None),
        (ValueError("a shape is wrong"), None),
    ],
)
def test_only_storage_errors_are_reported_as_storage_errors(error, said, tmp_path):
    message = storage_message(error, tmp_path)
    assert message is None if said is None else said in message


def torch_file(folder):
    torch.save({"weight": torch.zeros(50_000)}, folder / "optimizer.pt")


def safetensors_file(folder):
    save_file({"weight": torch.zeros(50_000)}, folder / "model.safetensors")


def tokenizer_file(folder):
    Tokenizer(models.WordLevel({f"word-{i}": i for i in range(9_000)}, unk_token="word-0")).save(str(folder / "t.json"))


def arrow_file(folder):
    write_blocks(folder / "blocks.arrow", pack([np.arange(50_000)], 100), 1 << 20)


def json_file(folder):
    write_json(folder / "rows.json", list(range(50_000)))


WRITERS = pytest.mark.parametrize("write", [torch_file, safetensors_file, tokenizer_file, arrow_file, json_file])


def told(write, folder):
    with storage_faults(folder, "run folder", "nothing that is committed is lost"):
        write(folder)


@WRITERS
@pytest.mark.parametrize("largest", [400, 50_000])
def test_a_limit_is_told_whichever_library_meets_it(write, largest, tmp_path, capfd):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        told(write, tmp_path)

    assert in_a_fork(limited) == 2
    assert "no file may be as large as this one" in capfd.readouterr().err


def small_disk(folder):
    """Mount 64 KiB at `folder`, for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    namespaces = 0x20000 if os.geteuid() == 0 else 0x10020000  # CLONE_NEWNS, with CLONE_NEWUSER for others than root
    private = 0x44000  # MS_REC | MS_PRIVATE
    if (
        libc.unshare(namespaces)
        or libc.mount(b"none", b"/", None, private, None)
        or libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=64k")
    ):
        raise OSError(ctypes.get_errno(), "no disk may be mounted here")


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")
@WRITERS
def test_a_full_disk_is_told_whichever_library_finds_it(write, tmp_path, capfd):
    def full():
        small_disk(tmp_path)
        told(write, tmp_path)

    if in_a_fork(lambda: small_disk(tmp_path)):
        pytest.skip("no disk may be mounted here")
    assert in_a_fork(full) == 2
    assert "the disk is full" in capfd.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "flipped"])
@pytest.mark.parametrize(
    "name", ["stages/02-law/model/model.safetensors", "memory/02/001-farm.arrow", "heldout/sea/documents.arrow",
             "stages/00-sea/losses.json"],
)  # fmt: skip
def test_a_run_does_not_build_on_damaged_files(run, stream, monkeypatch, capsys, name, damage):
    content = bytearray((run / name).read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 4
    (run / name).write_bytes(content)
    code, message = run_cli(monkeypatch, capsys, "extend", run, "--domain", stream.folder / "sea.yaml")
    assert code == 2
    assert f"{name}: its content differs from what was committed" in message
    assert "Restore damaged files from a backup" in message
    assert len(read_records(run)) == 4


def test_a_foreign_file_among_the_committed_is_named_before_anything_is_done(run, stream, monkeypatch, capsys):
    (run / "stages/01-farm/mine.txt").write_text("mine")
    code, message = run_cli(monkeypatch, capsys, "extend", run, "--domain", stream.folder / "sea.yaml")
    assert code == 2
    assert "stages/01-farm/mine.txt: does not belong to the run" in message
    (run / "stages/01-farm/mine.txt").unlink()
    assert check_run(run) == []


def test_a_recipe_that_was_changed_in_the_run_folder_is_found(run, stream, monkeypatch, capsys):
    plain = yaml.safe_load((run / "recipe.yaml").read_text())
    plain["replay"]["share"] = 0.4
    (run / "recipe.yaml").write_text(yaml.safe_dump(plain))
    code, message = run_cli(monkeypatch, capsys, "extend", run, "--domain", stream.folder / "sea.yaml")
    assert code == 2
    assert "recipe.yaml: was changed after the last commit" in message
    shutil.copy(run / "stages/02-law/recipe.yaml", run / "recipe.yaml")
    assert check_run(run) == []


def test_an_interrupted_extension_is_not_reported_as_damage(run, stream):
    class Killer(RunObserver):
        def stepped(self, point):
            raise ZeroDivisionError

    card = str(stream.folder / "sea.yaml")
    with pytest.raises(ZeroDivisionError):
        extend_run(run, card, tokens=600, observer=Killer())
    assert check_run(run) == []
    with pytest.raises(InputError, match=r"stage 3 \(sea\) is not committed"):
        extend_run(run, str(stream.folder / "farm.yaml"))
    extend_run(run, card)
    assert [record.name for record in read_records(run)][-1] == "03-sea"
    assert check_run(run) == []


def test_a_clock_that_goes_backwards_changes_nothing(short, finished_short, tmp_path, monkeypatch):
    """Every question about the time is answered with an hour less than the last; new files look older than old ones."""
    clock = [2_000_000_000.0]

    def back(*_):
        clock[0] -= 3600
        return clock[0]

    class Backwards(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.fromtimestamp(back(), tz or UTC)

    class Older(RunObserver):
        def stepped(self, point):
            for path in sorted((tmp_path / "run/.work").rglob("*")):
                os.utime(path, (back(), clock[0]))

    monkeypatch.setattr(time, "time", back)
    monkeypatch.setattr(commit, "datetime", Backwards)
    short.run(tmp_path / "run", Older())
    assert comparable(tmp_path / "run") == comparable(finished_short)


def test_a_second_writer_is_refused_with_the_name_of_the_first(run, stream):
    with Ledger.open(run), pytest.raises(InputError, match=rf"in use by process {os.getpid()} on .*; one writer at a"):
        extend_run(run, str(stream.folder / "sea.yaml"))


def test_the_lock_does_not_outlive_its_owner_in_a_worker(tmp_path):
    reading, writing = os.pipe()
    owner = os.fork()
    if owner == 0:
        with hold(tmp_path / ".lock"):
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
            os.write(writing, f"{worker}\n".encode())
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(reading, 20))
    try:
        with pytest.raises(InputError, match=f"in use by process {owner}"), hold(tmp_path / ".lock"):
            pass
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        with hold(tmp_path / ".lock"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_stop_requested_in_the_last_step_is_honoured(short, finished_short, tmp_path):
    class AskLate(RunObserver):
        asked = 0

        def stepped(self, point):
            if point.step == 10:
                self.asked += 1
                os.kill(os.getpid(), signal.SIGTERM)

        def phase_started(self, phase, total_tokens):
            assert not self.asked, f"{phase} was begun after the request"

    asker = AskLate()
    with pytest.raises(Interrupted, match="everything is saved"):
        run_recipe(parse_recipe(short.recipe), tmp_path / "run", asker)
    assert asker.asked == 1
    assert (tmp_path / "run/.work/00-sea/trained/model/model.safetensors").exists()
    short.run(tmp_path / "run")
    assert comparable(tmp_path / "run") == comparable(finished_short)


class StopAt(RunObserver):
    def __init__(self, step):
        self.step = step

    def stepped(self, point):
        if point.phase == "train" and point.step >= self.step:
            raise ZeroDivisionError


def interrupted(stream, out):
    """A run that died in its first stage with two checkpoints behind it."""
    with pytest.raises(ZeroDivisionError):
        run_recipe(parse_recipe(stream.recipe), out, StopAt(8))
    return sorted((out / ".work/00-sea/train-checkpoints").glob("checkpoint-*"))


def test_training_state_with_code_in_it_is_refused_and_not_run(short, finished_short, tmp_path):
    import pickle

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    _, newest = interrupted(short, tmp_path / "run")
    size = (newest / "optimizer.pt").stat().st_size
    torch.save(Harmful(), newest / "optimizer.pt", pickle_module=pickle)
    with (newest / "optimizer.pt").open("ab") as file:
        file.write(b"\0" * (size - file.tell()))
    with pytest.raises(CorruptionError, match=r"checkpoint-6: its training state cannot be loaded"):
        short.run(tmp_path / "run")
    assert not (tmp_path / "harm").exists()
    shutil.rmtree(newest)
    short.run(tmp_path / "run")
    assert comparable(tmp_path / "run") == comparable(finished_short)


def test_a_checkpoint_that_was_cut_short_is_passed_over(short, finished_short, tmp_path):
    _, newest = interrupted(short, tmp_path / "run")
    os.truncate(newest / "optimizer.pt", 100)
    short.run(tmp_path / "run")
    assert comparable(tmp_path / "run") == comparable(finished_short)


def test_code_in_a_checkpoint_is_not_run(finished, tmp_path):
    import json

    from lifelong.lm.checkpoint import load_config, load_model

    model = shutil.copytree(finished / "stages/00-sea/model", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'harm')!r})\n")
    for load in (lambda: load_model(model, "clm"), lambda: load_config(model)):
        with pytest.raises(InputError, match="checkpoint"):
            load()
    assert not (tmp_path / "harm").exists()
