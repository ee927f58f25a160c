"""The run folder: an append-only record of stages, committed one by one by renaming a folder.

A stage is prepared under `.work/`, described by `record.json` inside its folder, made durable, and
renamed to `stages/NN-domain`: that rename is the commit. The line in `ledger.jsonl` follows; if the
process dies between the two, the next one appends it from `record.json`. Every line carries the hash
of the line before it, so that nothing can be changed or left out unnoticed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from lifelong.checkpoint import (
    file_hash,
    read_json,
    remove_tree,
    sync_folder,
    sync_tree,
    tree_hashes,
    write_json,
    write_text,
)
from lifelong.errors import CorruptionError, InputError
from lifelong.records import StageRecord

INITIAL = "initial"


def record_hash(record: StageRecord) -> str:
    """SHA-256 of a ledger line: what the next line names as its parent."""
    return hashlib.sha256(_canonical(record).encode()).hexdigest()


def stage_name(index: int, domain: str) -> str:
    """Folder name of a stage, for example `01-news`; the row before the first stage is `initial`."""
    return INITIAL if index < 0 else f"{index:02d}-{domain}"


class Ledger:
    """One run folder, held by one process at a time."""

    def __init__(self, out: Path, lock: IO[str]) -> None:
        self.out = out
        self._lock = lock
        self.records = read_records(out)
        self._adopt_committed()

    @classmethod
    @contextlib.contextmanager
    def open(cls, out: Path) -> Iterator[Ledger]:
        """Take the run folder, creating it where needed; the lock dies with its owner.

        Raises:
            InputError: the folder cannot be written, is no run folder, or another process holds it.
        """
        _check_is_run_folder(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = (out / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise InputError(f"run folder {str(out)!r} cannot be written: {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                owner = lock.read().strip() or "unknown"
                raise InputError(
                    f"run folder {str(out)!r} is in use by process {owner}; one writer at a time"
                ) from None
            lock.truncate(0)
            lock.write(f"{os.getpid()} on {os.uname().nodename}")
            lock.flush()
            yield cls(out, lock)

    @property
    def stages(self) -> list[StageRecord]:
        """Committed stages, without the record of the initial model."""
        return [record for record in self.records if record.index >= 0]

    @property
    def head(self) -> str:
        """Hash of the last line; empty before the first."""
        return record_hash(self.records[-1]) if self.records else ""

    def stage_folder(self, record: StageRecord) -> Path:
        """Where a committed stage lies."""
        return self.out / ("initial" if record.index < 0 else f"stages/{record.name}")

    def work_folder(self, name: str) -> Path:
        """Where stage `name` is being prepared; kept across interruptions."""
        folder = self.out / ".work" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, prepared: Path, record: StageRecord, extra_folders: Sequence[Path] = ()) -> StageRecord:
        """Make a prepared folder a stage of the run.

        Args:
            prepared: the folder with everything that belongs to the stage; it is renamed.
            record: the line to write; `files` and `parent` are filled in here.
            extra_folders: folders of the run (memory, held-out) written for this stage.

        Returns:
            The record as written.
        """
        (prepared / "record.json").unlink(missing_ok=True)
        files = {
            **{
                f"{self._relative(record)}/{name}": digest for name, digest in tree_hashes([prepared], prepared).items()
            },
            **tree_hashes(extra_folders, self.out),
        }
        record = replace(record, parent=self.head, files=files)
        write_json(prepared / "record.json", record.to_json())
        sync_tree(prepared)
        target = self.stage_folder(record)
        target.parent.mkdir(parents=True, exist_ok=True)
        prepared.rename(target)
        sync_folder(target.parent)
        self._append(record)
        return record

    def _append(self, record: StageRecord) -> None:
        with (self.out / "ledger.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(_canonical(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(self.out)
        self.records.append(record)

    def _adopt_committed(self) -> None:
        """Append the line of a stage that was renamed just before its process died."""
        index = self.records[-1].index + 1 if self.records else -1
        candidates = [self.out / INITIAL] if index < 0 else sorted((self.out / "stages").glob(f"{index:02d}-*"))
        for folder in candidates:
            if (folder / "record.json").is_file():
                record = StageRecord.from_json(read_json(folder / "record.json"))
                if record.parent == self.head:
                    self._append(record)

    def _relative(self, record: StageRecord) -> str:
        return self.stage_folder(record).relative_to(self.out).as_posix()

    def forget_work(self) -> None:
        """Remove what was only needed while a stage was being prepared."""
        remove_tree(self.out / ".work")


def read_records(out: Path) -> list[StageRecord]:
    """The lines of the ledger, their chain verified.

    Raises:
        CorruptionError: a line is damaged, changed or missing; names the line.
    """
    path = out / "ledger.jsonl"
    if not path.exists():
        return []
    records: list[StageRecord] = []
    parent = ""
    lines = path.read_bytes().split(b"\n")
    torn = lines.pop()  # a complete ledger ends with a newline: what follows it is a line cut short by a crash
    for number, line in enumerate(lines, start=1):
        try:
            record = StageRecord.from_json(json.loads(line))
        except (ValueError, TypeError, KeyError):
            raise CorruptionError(f"{path}:{number}: the line is damaged; restore the file from a backup") from None
        if record.parent != parent or _canonical(record).encode() != line:
            raise CorruptionError(
                f"{path}:{number}: the line does not follow from the one before; it was changed or one is missing"
            )
        records.append(record)
        parent = record_hash(record)
    if torn:
        write_text(path, "".join(line.decode() + "\n" for line in lines))
    return records


def check_run(out: Path) -> list[str]:
    """Every committed file against its hash, the ledger's chain, and what does not belong.

    Returns:
        One line a finding; none where all is as committed.

    Raises:
        InputError: not a run folder.
    """
    if not (out / "ledger.jsonl").is_file():
        raise InputError(f"{str(out)!r} is no run folder: it has no ledger.jsonl")
    try:
        records = read_records(out)
    except CorruptionError as error:
        return [str(error)]
    expected = {name: digest for record in records for name, digest in record.files.items()}
    return [
        *_damaged_records(out, records),
        *_damaged_files(out, records, expected),
        *_foreign_files(out, expected),
    ]


def _damaged_records(out: Path, records: Sequence[StageRecord]) -> Iterator[str]:
    for record in records:
        name = f"{INITIAL if record.index < 0 else f'stages/{record.name}'}/record.json"
        if not (out / name).is_file():
            yield f"{name}: missing"
        elif _damaged_copy(out / name, record):
            yield f"{name}: differs from the ledger"


def _damaged_files(out: Path, records: Sequence[StageRecord], expected: Mapping[str, str]) -> Iterator[str]:
    replaced = _replaced_generations(records)
    for name, digest in expected.items():
        path = out / name
        if path.is_file():
            if file_hash(path) != digest:
                yield f"{name}: its content is not what was committed"
        elif not name.startswith(replaced):
            yield f"{name}: missing"


def _foreign_files(out: Path, expected: Mapping[str, str]) -> Iterator[str]:
    for folder in (INITIAL, "stages", "heldout", "memory"):
        for path in sorted((out / folder).rglob("*")):
            name = path.relative_to(out).as_posix()
            if path.is_file() and name not in expected and path.name != "record.json":
                yield f"{name}: does not belong to the run"


def _canonical(record: StageRecord) -> str:
    return json.dumps(record.to_json(), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _damaged_copy(path: Path, record: StageRecord) -> bool:
    try:
        return StageRecord.from_json(read_json(path)) != StageRecord.from_json(record.to_json())
    except (CorruptionError, TypeError):
        return True


def _replaced_generations(records: Sequence[StageRecord]) -> tuple[str, ...]:
    """Folders of the memory that a later stage has replaced: they may be gone."""
    generations = {name.split("/")[1] for record in records for name in record.files if name.startswith("memory/")}
    return tuple(f"memory/{generation}/" for generation in sorted(generations)[:-1]) or ("\0",)


def _check_is_run_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"run folder {str(out)!r} is a file; name a new folder or a run")
    ours = {"ledger.jsonl", "recipe.yaml", ".lock"}
    if out.is_dir() and any(out.iterdir()) and not ours & {path.name for path in out.iterdir()}:
        raise InputError(f"run folder {str(out)!r} holds other files and no ledger; name an empty or new folder")
