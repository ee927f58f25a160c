"""One line of the ledger: how it is written, and what is believed of one that was read.

The hashes of a ledger have no key: whoever hands on a run folder can write a chain that is valid. So no line is used
before its names are those that a run would have given, and its files lie in the folders of the run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lifelong.errors import CorruptionError
from lifelong.files import is_file_name
from lifelong.ledger.folder import INITIAL, SHARED_FOLDERS, StageFolder, stage_name
from lifelong.records import NAME_PATTERN, StageRecord

LINE_START, HASH_SIZE = b'{"sha256":"', 64
_REBUILD = "the next run writes it again from the other copy (ledger.jsonl, or the stages' record.json)"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAPPINGS = ("shape", "cost", "row", "fingerprints", "seeds", "versions", "files", "replay", "sources")


@dataclass(frozen=True)
class Line:
    """One line of the ledger, without its newline; `sha256` is of what follows it."""

    sha256: str
    record: StageRecord
    content: bytes

    @classmethod
    def of(cls, record: StageRecord) -> Line:
        """The line that a record makes."""
        body = _body(record)
        digest = hashlib.sha256(body).hexdigest()
        return cls(digest, record, LINE_START + digest.encode() + b'",' + body[1:])

    @classmethod
    def from_bytes(cls, line: bytes, where: str) -> Line:
        """A line as it was read.

        Raises:
            CorruptionError: it is not what was written, a newer version wrote it, or no run would have written it.
        """
        place = len(LINE_START)
        digest, body = line[place : place + HASH_SIZE], b"{" + line[place + HASH_SIZE + 2 :]
        if line[:place] != LINE_START or hashlib.sha256(body).hexdigest().encode() != digest:
            raise CorruptionError(f"{where}: is damaged; restore the file from a backup, or remove it: {_REBUILD}")
        try:
            data = json.loads(body)
            unknown = sorted(set(data) - set(StageRecord.__dataclass_fields__))
            record = None if unknown else StageRecord.from_json(data)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise _forged(where, f"it is not the record of a stage ({error})") from None
        if record is None:
            raise CorruptionError(f"{where}: a newer version of lifelong wrote this (key {unknown[0]!r}); update it")
        for fault in _faults(record):
            raise _forged(where, fault)
        return cls(digest.decode(), record, line)


def _body(record: StageRecord) -> bytes:
    """A record without what a clock measured."""
    data = record.to_json()
    data.pop("committed_at", None)
    for key in ("sources", "generated"):  # lines of earlier versions have none, and keep their hashes
        if not data[key]:
            del data[key]
    for cost in data["cost"].values():
        cost.pop("seconds", None)
    if data["expansion"] is not None:
        data["expansion"].pop("seconds", None)
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def record_hash(record: StageRecord) -> str:
    """SHA-256 of a ledger line: what the next line names as its parent."""
    return Line.of(record).sha256


def _forged(where: str, fault: str) -> CorruptionError:
    return CorruptionError(
        f"{where}: {fault}; lifelong did not write this line. Nothing was changed; do not trust this folder"
    )


def _faults(record: StageRecord) -> Iterator[str]:
    """Why no run would have written this record; its names and files become paths."""
    if not isinstance(record.index, int) or isinstance(record.index, bool) or record.index < -1:
        yield f"index {record.index!r} is not the number of a stage"
    elif not isinstance(record.domain, str) or not (record.index < 0 or NAME_PATTERN.fullmatch(record.domain)):
        yield f"domain {record.domain!r} is not the name of a domain"
    elif record.name != (expected := stage_name(record.index, record.domain)):
        yield f"stage {record.index} is named {record.name!r}, its domain makes it {expected!r}"
    elif absent := [key for key in _MAPPINGS if not isinstance(getattr(record, key), Mapping)]:
        yield f"{absent[0]} is not a mapping"
    elif not all(isinstance(phase, Mapping) for phase in record.cost.values()):
        yield "cost is not a mapping of phases"
    else:
        for name, digest in record.files.items():
            if not _is_file_of(record, name):
                yield f"file {name!r} is not a path of {record.name} in the run folder"
            elif not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                yield f"file {name!r} has no SHA-256"


def _is_file_of(record: StageRecord, name: str) -> bool:
    """Whether a stage may list this file: in its own folder, or in one that all stages share."""
    parts = name.split("/")
    if PurePosixPath(name).as_posix() != name or not all(is_file_name(part) for part in parts):
        return False
    own = [INITIAL] if record.index < 0 else ["stages", record.name]
    return len(parts) > len(own) and (parts[: len(own)] == own or (parts[0] in SHARED_FOLDERS and len(parts) > 2))


def read_lines(path: Path) -> tuple[list[Line], bytes]:
    """The lines, and what stands behind the last newline: a line cut short by a crash, or still being written.

    Raises:
        CorruptionError: a line is damaged, changed or missing, or no run would have written it; names the line.
    """
    if not path.exists():
        return [], b""
    *complete, torn = path.read_bytes().split(b"\n")
    lines: list[Line] = []
    for number, line in enumerate(complete, start=1):
        where = f"{path}:{number}"
        read = Line.from_bytes(line, where)
        if read.record.parent != (lines[-1].sha256 if lines else ""):
            raise CorruptionError(
                f"{where}: the line does not follow from the one before; it was changed or one is missing"
            )
        if read.record.index != len(lines) - 1:
            raise _forged(where, f"it is of stage {read.record.index}, the line before it of stage {len(lines) - 2}")
        lines.append(read)
    return lines, torn


def read_record(stage: StageFolder) -> Line:
    """The line that a committed folder brings.

    Raises:
        CorruptionError: it is damaged, or the line of another folder.
    """
    line = Line.from_bytes(stage.record.read_bytes().rstrip(b"\n"), str(stage.record))
    if line.record.name != stage.name:
        raise _forged(str(stage.record), f"it is the record of {line.record.name!r}")
    return line
