"""What is nobody's bug is one message and exit code 2, with every verb; a bug of ours is a traceback and exit code 1."""

import errno
import io
import os
import pickle
import sys

import pytest
import torch
from safetensors import SafetensorError

from lifelong.cli import entry
from lifelong.cli.faults import fault_message
from lifelong.pipeline.loop import run_recipe
from lifelong.recipe.files import parse_recipe
from tests.support import recipe_data, run_cli

LONG = "x" * 300

SAID = [
    (OSError(errno.ENAMETOOLONG, "File name too long", LONG), "File name too long"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "ledger.jsonl"), "'ledger.jsonl': Is a directory"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), "'a/b': Not a directory"),
    (OSError(errno.ENOSPC, "No space left on device"), "the disk is full. Free some space"),
    (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "bytes are free"),
    (OSError("no network"), "no network"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "there is not enough memory"),
    (MemoryError(), "there is not enough memory (MemoryError)"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "there is not enough memory"),
    (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "there is not enough memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "there is not enough memory"),
    (RuntimeError("can't start new thread"), "there is not enough memory"),
    (RuntimeError("I/O error: (os error 28)"), "the disk is full"),
    (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), "no file may be as large"),
    (SafetensorError("Error while deserializing header: HeaderTooSmall"), "HeaderTooSmall"),
    (pickle.UnpicklingError("Weights only load failed"), "holds more than plain tensors"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "cannot be read or written as utf-8"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "said"), SAID)
def test_a_fault_of_the_machine_is_told_in_one_line(error, said):
    message = fault_message(error)
    assert message is not None
    assert said in message
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("shapes"), RecursionError(), TypeError(), ValueError("1")]
)
def test_a_bug_stays_a_bug(error, monkeypatch, capsys):
    assert fault_message(error) is None

    def broken():
        raise error

    monkeypatch.setattr("lifelong.recipe.files.known_recipes", broken)
    monkeypatch.setattr(sys, "argv", ["lifelong", "list", "recipes"])
    with pytest.raises(type(error)):
        entry.main()


def test_verbose_shows_where(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lifelong", "-v", "check", LONG])
    with pytest.raises(OSError, match="too long"):
        entry.main()
    entry.state.verbose = False


PATHS = [
    ("check", LONG),
    ("report", LONG),
    ("merge", LONG),
    ("extend", LONG, "--domain", "licences"),
    ("run", LONG),
    ("run", f"{LONG}.yaml"),
    ("run", "quickstart", "--out", LONG),
    ("run", "quickstart", "--out", "/proc/x"),
    ("plan", f"{LONG}/x.yaml"),
    ("domain", "check", f"{LONG}.yaml"),
    ("domain", "add", "x", "--python-text", "licences", "--out", LONG),
    ("domain", "add", "x", "--files", LONG),
    ("expand", LONG, "out", "--layers", "4"),
    ("evaluate", LONG, "--domain", "licences"),
    ("cache", LONG, "--domain", "licences", "--out", "c"),
]


@pytest.mark.parametrize("arguments", PATHS, ids=lambda arguments: " ".join(arguments)[:20])
def test_paths_that_cannot_be(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, *arguments) == 2
    message = capsys.readouterr().err
    assert message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def finished(cards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    small = {"inherit": None, "replay": None, "evaluate": {"tokens": 300, "samples": 0}}
    data = recipe_data(cards, tokenizer={"train": {"kind": "bpe", "vocab_size": 300}}, **small)
    run_recipe(parse_recipe({**data, "stages": data["stages"][:1]}), folder / "run")
    return folder / "run"


def test_a_ledger_that_is_a_folder(finished, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.jsonl").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("a: 1")
    for verb in ("check", "report", "merge"):
        assert run_cli(monkeypatch, verb, tmp_path / "run") == 2
        assert "ledger.jsonl" in capsys.readouterr().err


def test_a_terminal_of_ascii_shows_what_it_can(finished, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    monkeypatch.setattr(
        "lifelong.report.table.run_tables", lambda history: [history.name + " \N{GREEK SMALL LETTER DELTA}"]
    )
    assert run_cli(monkeypatch, "report", finished) == 0
    assert b"tiny ?" in written.getvalue()


def in_a_fork(work):
    """What a command says in a process whose user and limits are its own, and its exit code."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 2)
        code = 1
        try:
            work()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode())
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def command(*arguments):
    def work():
        sys.argv, sys.stderr = (
            ["lifelong", *map(str, arguments)],
            io.TextIOWrapper(io.FileIO(2, "w"), write_through=True),
        )
        entry.main()

    return work


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
@pytest.mark.parametrize("name", ["ledger.jsonl", "stages", "stages/00-sea", "."])
def test_what_somebody_else_may_not_read(finished, name):
    path = finished / name
    mode = path.stat().st_mode
    for folder in finished.parents:
        if folder.stat().st_uid == 0 and folder != folder.parent:
            folder.chmod(0o755)

    def as_nobody():
        os.setgid(65534)
        os.setuid(65534)
        command("check", finished)()

    path.chmod(0)
    try:
        code, said = in_a_fork(as_nobody)
    finally:
        path.chmod(mode)
    assert code == 2
    assert "write" not in said
    assert "read" in said
    assert "bytes are free" not in said


def test_memory_that_is_exhausted(cards, finished, monkeypatch):
    def greedy(*_, **__):
        torch.zeros(1 << 50)

    monkeypatch.setattr("lifelong.report.write_report", greedy)
    code, said = in_a_fork(command("report", finished))
    assert code == 2
    assert "there is not enough memory" in said
    assert "what is committed is whole" in said
