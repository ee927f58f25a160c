"""The run folder: an append-only record of stages, committed one by one by renaming a folder.

A stage is prepared under `.work/`, described by `record.json` inside its folder, made durable, and
renamed to `stages/NN-domain`: that rename is the commit. The line in `ledger.jsonl` follows; if the
process dies between the two, the next one appends it from `record.json`. Every line begins with its own
hash and names the hash of the line before it, so that nothing can be changed or left out unnoticed.

A line holds nothing that was measured by a clock: two runs of one recipe have the same ledger, bit for bit,
however often they were interrupted. Times are beside it, in the stage's `measured.json`.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lifelong.errors import CorruptionError, InputError
from lifelong.files import (
    PARTIAL,
    read_sealed,
    remove_partials,
    remove_tree,
    sync_folder,
    sync_tree,
    tree_hashes,
    usual_modes,
    write_bytes,
    write_sealed,
    write_text,
)
from lifelong.ledger.folder import COMMITTED_FOLDERS, INITIAL, RunFolder, StageFolder, WorkFolder, stage_name
from lifelong.ledger.integrity import (
    changed_recipe,
    damaged_companions,
    damaged_files,
    expected_files,
    files_in_use,
    foreign_entries,
    foreign_files,
    recipe_finding,
    replaced_generations,
)
from lifelong.ledger.line import Line, read_lines, read_record, record_hash
from lifelong.ledger.lock import hold
from lifelong.ledger.storage import storage_faults
from lifelong.records import StageRecord

__all__ = [
    "Ledger",
    "check_run",
    "committed_stages",
    "measured",
    "model_of",
    "read_records",
    "record_hash",
    "stage_name",
]


class Ledger:
    """One run folder, held by one process at a time."""

    def __init__(self, out: Path) -> None:
        self.folder = folder = RunFolder(out)
        for path in (*(out / name for name in COMMITTED_FOLDERS), folder.work_root, folder.cache):
            remove_partials(path)
        for path in (folder.ledger, folder.recipe, folder.environment):
            path.with_name(f".{path.name}.tmp").unlink(missing_ok=True)
        self._lines, torn = read_lines(folder.ledger)
        if torn:
            write_bytes(folder.ledger, b"".join(line.content + b"\n" for line in self._lines))
        self._adopt_committed()
        for line in self._lines:
            remove_tree(folder.work(line.record.name).path)
            stage = folder.stage(line.record.name)
            if not stage.record.exists() and stage.path.is_dir():
                write_bytes(stage.record, line.content + b"\n")

    @classmethod
    @contextlib.contextmanager
    def open(cls, out: Path) -> Iterator[Ledger]:
        """Take the run folder, creating it where needed; the lock dies with its owner.

        Raises:
            InputError: the folder is not a run folder, or another process holds it.
            CorruptionError: what is committed there is damaged.
            StorageError: now or later, the disk is full, read-only or failing.
        """
        _check_is_run_folder(out)
        RunFolder(out).require_no_links()
        then = "then run the same command again: it resumes, and nothing that is committed is lost"
        with storage_faults(out, f"run folder {str(out)!r}", then):
            out.mkdir(parents=True, exist_ok=True)
            with hold(RunFolder(out).lock):
                ledger = cls(out)
                ledger.require_intact()
                yield ledger

    @classmethod
    def follow(cls, out: Path) -> Ledger:
        """The run folder as another process of the same run writes it; `refresh` after each of its commits."""
        ledger = cls.__new__(cls)
        ledger.folder = RunFolder(out)
        ledger.refresh()
        return ledger

    def refresh(self) -> None:
        """Read the lines again."""
        self._lines = read_lines(self.folder.ledger)[0]

    @property
    def out(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def records(self) -> list[StageRecord]:
        """All lines, the initial model's included."""
        return [line.record for line in self._lines]

    @property
    def stages(self) -> list[StageRecord]:
        """Committed stages, without the record of the initial model."""
        return [record for record in self.records if record.index >= 0]

    @property
    def head(self) -> str:
        """Hash of the last line; empty before the first."""
        return self._lines[-1].sha256 if self._lines else ""

    def work(self, name: str) -> WorkFolder:
        """Folder in which stage `name` is being prepared; created here, kept across interruptions."""
        work = self.folder.work(name)
        work.path.mkdir(parents=True, exist_ok=True)
        return work

    def memory_snapshot(self, before: int) -> Path | None:
        """The newest replay memory that a stage before stage `before` left behind."""
        return self.folder.memory_before(before)

    def replace_recipe(self, text: str) -> None:
        """Put another recipe in force for the stages to come; it becomes part of the run with the next commit."""
        # the copy in .work says that it was changed by us, whenever the process dies
        write_text(self.folder.pending_recipe, text)
        write_text(self.folder.recipe, text)

    @property
    def is_extending(self) -> bool:
        """Whether an extension that `replace_recipe` announced is not finished."""
        return self.folder.pending_recipe.is_file()

    def require_intact(self) -> None:
        """Refuse to build on what is damaged: every file that the next stage reads, and the recipe.

        Raises:
            CorruptionError: one line a finding.
        """
        records = self.records
        findings = [*damaged_files(self.out, files_in_use(records)), *foreign_files(self.out, records)]
        if copy := changed_recipe(self.out, records):
            findings.append(recipe_finding(copy))
        if findings:
            raise CorruptionError(
                f"run folder {str(self.out)!r}: {_count(findings)}\n  "
                + "\n  ".join(findings)
                + "\n  Restore damaged files from a backup, move foreign ones away; nothing was changed"
            )

    def commit(
        self,
        prepared: Path,
        record: StageRecord,
        extra_folders: Sequence[Path] = (),
        computed_with: Mapping[str, Any] | None = None,
    ) -> StageRecord:
        """Make a prepared folder a stage of the run.

        Args:
            prepared: the folder with everything that belongs to the stage; it is renamed.
            record: the line to write; `files` and `parent` are filled in here.
            extra_folders: folders of the run (memory, held-out) written for this stage.
            computed_with: threads, packages and whatever else may move the last bits of a figure; written beside the
                ledger with the measured times.

        Returns:
            The record as written.
        """
        stage, target = StageFolder(prepared), self.folder.stage(record.name).path
        remove_partials(prepared)
        usual_modes(prepared)
        for path in (stage.record, stage.measured):
            path.unlink(missing_ok=True)
        if self.folder.recipe.is_file():
            write_bytes(stage.recipe, self.folder.recipe.read_bytes())
        own = tree_hashes([prepared], prepared)
        files = {
            **{f"{self.folder.name_of(target)}/{name}": digest for name, digest in own.items()},
            **tree_hashes(extra_folders, self.out),
        }
        record = replace(record, parent=self.head, files=files)
        line = Line.of(record)
        write_sealed(stage.measured, measurements(record, computed_with or {}))
        write_bytes(stage.record, line.content + b"\n")
        sync_tree(prepared)
        for folder in extra_folders:
            sync_tree(folder)
            sync_folder(folder.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(self.out)
        prepared.rename(target)
        sync_folder(target.parent)
        self._append(line)
        remove_tree(self.folder.work(record.name).path)
        return record

    def _append(self, line: Line) -> None:
        with self.folder.ledger.open("ab") as stream:
            stream.write(line.content + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(self.out)
        self._lines.append(line)

    def _adopt_committed(self) -> None:
        """Append the line of a stage that was renamed just before its process died; all if the ledger is gone."""
        while True:
            index = self.records[-1].index + 1 if self._lines else -1
            stages = self.folder.stages if index >= 0 else [self.folder.initial]
            candidates = [stage for stage in stages if stage.name.startswith(stage_name(index, ""))]
            found = [read_record(stage) for stage in candidates if stage.record.is_file()]
            following = [line for line in found if line.record.parent == self.head]
            if not following:
                return
            self._append(following[0])

    def restart(self) -> None:
        """Forget the initial model and what was prepared, as long as no stage is committed.

        The ledger goes first: whenever the process dies, what is left is an older state or one that is made anew.
        """
        assert not self.stages, "committed stages stay"
        self.clear_work_dir()
        self.folder.ledger.unlink(missing_ok=True)
        if self.folder.initial.path.is_dir():
            self.folder.work_root.mkdir()
            self.folder.initial.path.rename(self.folder.work_root / INITIAL)  # at once: half of it would be damaged
        for name in COMMITTED_FOLDERS:
            remove_tree(self.out / name)
        self.clear_work_dir()
        self._lines = []

    def clear_work_dir(self) -> None:
        """Remove what was only needed while a stage was being prepared."""
        remove_tree(self.folder.work_root)


def measurements(record: StageRecord, computed_with: Mapping[str, Any]) -> dict[str, Any]:
    """Measured times and machine of a stage; written beside the ledger."""
    return {
        "committed_at": record.committed_at or datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": {phase: float(cost["seconds"]) for phase, cost in record.cost.items()},
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()},
        "computed_with": dict(computed_with),
    }


def committed_stages(out: Path) -> list[StageRecord]:
    """The records of the stages of a run, oldest first, without the row before the first.

    Raises:
        InputError: not a run folder, or no stage is committed yet.
    """
    RunFolder(out).require()
    stages = [record for record in read_records(out) if record.index >= 0]
    if not stages:
        raise InputError(f"{str(out)!r}: no stage is committed yet")
    return stages


def model_of(source: str | Path) -> tuple[str, StageRecord | None]:
    """Path of the weights that `source` names: a checkpoint folder, a hub id, or a run, by its last stage.

    Returns:
        Checkpoint folder or hub id, and the stage's record where it is a run.

    Raises:
        InputError: a run without a committed stage.
    """
    if (run := RunFolder.locate(source)) is None:
        return str(source), None
    record = committed_stages(run.path)[-1]
    return str(run.model(record.name)), record


def measured(out: Path, record: StageRecord) -> StageRecord:
    """The record with its measured times put back, for a report.

    Raises:
        CorruptionError: the file with the times is damaged.
    """
    return with_measurements(record, read_measurements(out, record))


def read_measurements(out: Path, record: StageRecord) -> dict[str, Any]:
    """Measured times and machine of a stage, from beside the ledger.

    Raises:
        CorruptionError: the file is damaged.
    """
    return read_sealed(RunFolder(out).stage(record.name).measured)


def with_measurements(record: StageRecord, facts: Mapping[str, Any]) -> StageRecord:
    """The record with its measured times put back."""
    seconds: Mapping[str, float] = facts["seconds"]
    cost = {phase: {**values, "seconds": seconds.get(phase, 0.0)} for phase, values in record.cost.items()}
    expansion = record.expansion
    if expansion is not None:
        expansion = {**expansion, "seconds": seconds.get("grow", 0.0)}
    return replace(record, cost=cost, expansion=expansion, committed_at=facts["committed_at"])


def read_records(out: Path) -> list[StageRecord]:
    """The lines of the ledger, their chain verified; only reads.

    Raises:
        CorruptionError: a line is damaged, changed or missing; names the line.
    """
    return [line.record for line in read_lines(RunFolder(out).ledger)[0]]


def check_run(out: str | Path) -> list[str]:
    """Every committed file against its hash, the ledger's chain, and what does not belong; only reads.

    Returns:
        One line a finding; none where all is as committed.

    Raises:
        InputError: not a run folder.
    """
    run = RunFolder(out).require()
    out = run.path
    try:
        lines, torn = read_lines(run.ledger)
    except CorruptionError as error:
        return [str(error)]
    records = [line.record for line in lines]
    findings = [f"{run.ledger.name}: its last line is incomplete; the next run writes it again"] if torn else []
    if not records:
        findings.append(
            f"{run.ledger.name}: missing or empty; the next run writes it again from the stages' own record.json"
        )
    findings += [
        *_damaged_records(run, lines),
        *damaged_companions(out, records),
        *damaged_files(out, expected_files(records), replaced_generations(records)),
        *foreign_files(out, records),
        *foreign_entries(out),
    ]
    if copy := changed_recipe(out, records):
        findings.append(recipe_finding(copy))
    return findings


def _damaged_records(run: RunFolder, lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        path = run.stage(line.record.name).record
        if not path.is_file():
            yield f"{run.name_of(path)}: missing"
        elif path.read_bytes() != line.content + b"\n":
            yield f"{run.name_of(path)}: differs from the ledger"


def _count(findings: Sequence[str]) -> str:
    return f"{len(findings)} finding{'s' * (len(findings) > 1)}"


def _check_is_run_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"run folder {str(out)!r} is a file; name a new folder or a run")
    ours = {RunFolder.ledger.name, RunFolder.recipe.name, RunFolder.lock.name, INITIAL}
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if names and not ours & names and not all(PARTIAL.match(name) for name in names):
        raise InputError(f"run folder {str(out)!r} holds other files and no ledger; name an empty or new folder")
