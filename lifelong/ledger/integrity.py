"""Integrity of a run folder: every committed file by its hash, and no foreign file."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lifelong.errors import CorruptionError
from lifelong.files import PARTIAL, file_hash, read_sealed
from lifelong.ledger.folder import COMMITTED_FOLDERS, OTHERS, SHARED_FOLDERS, RunFolder, StageFolder
from lifelong.records import StageRecord

# left by file managers and network file systems wherever they look
NOT_OURS_NOR_THEIRS = (".DS_Store", "Thumbs.db", "desktop.ini", ".nfs*", ".fuse_hidden*", "lost+found")


def _listed(record: StageRecord) -> StageFolder:
    """A committed stage by the paths that the ledger lists: relative to the run folder."""
    return RunFolder("").stage(record.name)


def expected_files(records: Sequence[StageRecord]) -> dict[str, str]:
    """SHA-256 of every committed file by its path; later records replace earlier ones."""
    return {name: digest for record in records for name, digest in record.files.items()}


def damaged_files(out: Path, files: Mapping[str, str], replaced: Sequence[str] = ()) -> Iterator[str]:
    """One line for every file that is missing or not what was committed.

    Args:
        out: the run folder.
        files: SHA-256 by path.
        replaced: beginnings of paths that may be missing.
    """
    for name, digest in files.items():
        path = out / name
        try:
            found = file_hash(path)
        except (FileNotFoundError, NotADirectoryError):
            if not name.startswith(tuple(replaced)):
                yield f"{name}: missing"
        except OSError as error:
            yield f"{name}: cannot be read ({error.strerror})"
        else:
            if found != digest:
                yield f"{name}: its content differs from what was committed"


def damaged_companions(out: Path, records: Sequence[StageRecord]) -> Iterator[str]:
    """Damaged files beside the ledger: measured times and the environment, each with its own hash."""
    run = RunFolder(out)
    for path in [*(run.stage(record.name).measured for record in records), run.environment]:
        try:
            read_sealed(path)
        except CorruptionError as error:
            yield f"{run.name_of(path)}: {str(error).partition(': ')[2]}"


def changed_recipe(out: Path, records: Sequence[StageRecord]) -> str | None:
    """The copy that `recipe.yaml` should equal, or None where it does, or where nothing is committed yet.

    It is the copy in the newest stage, or, while the run is being extended, the one in `.work`.
    """
    if not records:
        return None
    run = RunFolder(out)
    committed = run.stage(records[-1].name).recipe
    copies = [path.read_bytes() for path in (committed, run.pending_recipe) if path.is_file()]
    try:
        same = run.recipe.read_bytes() in copies
    except FileNotFoundError:
        same = False
    return None if same or not copies else run.name_of(committed)


def recipe_finding(copy: str) -> str:
    """What `changed_recipe` found, in words."""
    name = RunFolder.recipe.name
    return f"{name}: was changed after the last commit; the recipe as committed is {copy}: copy it back"


def foreign_files(out: Path, records: Sequence[StageRecord]) -> Iterator[str]:
    """One line for every file in a committed folder that no record lists."""
    known = set(expected_files(records))
    listed = {"/".join(name.split("/")[:2]) for name in known}
    pending = RunFolder(out).work_root.is_dir()  # a stage that is being made writes its share of these folders first
    for stage in map(_listed, records):
        known |= {stage.record.as_posix(), stage.measured.as_posix(), stage.card.as_posix()}
    for folder in COMMITTED_FOLDERS:
        for path in sorted((out / folder).rglob("*")):
            name = path.relative_to(out).as_posix()
            if pending and folder in SHARED_FOLDERS and "/".join(name.split("/")[:2]) not in listed:
                continue
            if path.is_file() and name not in known and not _is_harmless(name):
                yield f"{name}: does not belong to the run"


def foreign_entries(out: Path) -> Iterator[str]:
    """One line for everything at the top of a run folder that is not ours."""
    for path in sorted(out.iterdir()):
        if path.name not in (*COMMITTED_FOLDERS, *OTHERS) and not _is_harmless(path.name):
            yield f"{path.name}: does not belong to the run"


def _is_harmless(name: str) -> bool:
    parts = name.split("/")
    return any(PARTIAL.match(part) for part in parts) or any(
        fnmatch.fnmatch(parts[-1], pattern) for pattern in NOT_OURS_NOR_THEIRS
    )


def replaced_moments(records: Sequence[StageRecord]) -> tuple[str, ...]:
    """Moments that a later stage has carried on from: they may be gone."""
    ending = f"/{StageFolder.moments.name}"
    return tuple(name for record in records for name in record.files if name.endswith(ending))[:-1]


def replaced_generations(records: Sequence[StageRecord]) -> tuple[str, ...]:
    """What a later stage has replaced and may be gone: folders of the memory, and carried moments."""
    memories = f"{RunFolder('').memories}/"
    generations = {name.split("/")[1] for record in records for name in record.files if name.startswith(memories)}
    older = tuple(f"{memories}{generation}/" for generation in sorted(generations)[:-1])
    return (*older, *replaced_moments(records))


def files_in_use(records: Sequence[StageRecord]) -> dict[str, str]:
    """Files that the next stage reads: everything committed but the models of older stages and replaced memory."""
    older = tuple(f"{_listed(record).model.as_posix()}/" for record in records[:-1])
    passed_over = (*older, *replaced_generations(records))
    return {name: digest for name, digest in expected_files(records).items() if not name.startswith(passed_over)}
