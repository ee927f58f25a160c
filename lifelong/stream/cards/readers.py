"""Readers of local files: from a file to its raw documents, each with its place.

Rows are read one at a time and no line is held that is longer than a document may be, so memory does not
depend on the size of a file. JSON lines and text are parsed here rather than by `datasets`: that way a fault
has a file and a line, and one bad row can be left out without losing the file.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lifelong.errors import InputError, did_you_mean
from lifelong.stream.cards.document import Bad, RawDocument, Reading
from lifelong.stream.cards.pieces import FileRange
from lifelong.stream.cards.remote import open_remote

FORMATS = {
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "text": (
        ".txt",
        ".text",
        ".md",
        ".rst",
        ".tex",
        ".html",
        ".xml",
        ".py",
        ".c",
        ".h",
        ".java",
        ".js",
        ".rs",
    ),
}
_COMPRESSED = (".gz", ".zst")
# what may be read from the middle, where it is not compressed: a quoted cell may hold a line break, a table has no mark
_DIVISIBLE = ("jsonl", "parquet", "text")
# a damaged file gives an error for a whole buffer: a small one loses few of the documents before it
_BUFFER_BYTES = 1 << 16
_CUT_SHORT = (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowInvalid, OSError)


def format_of(path: Path, declared: str | None = None) -> str:
    """The format of a file, declared or by its name.

    Raises:
        InputError: the name says nothing; lists the formats.
    """
    if declared:
        return declared
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    for name, known in FORMATS.items():
        if suffixes and suffixes[-1] in known:
            return name
    raise InputError(
        f"{path}: its name does not tell its format; set source.format to one of {', '.join(FORMATS)} "
        f"(known endings: {', '.join(sum(FORMATS.values(), ()))}, each also with .gz or .zst)"
    )


def is_divisible(path: Path, kind: str, *, blocks: bool) -> bool:
    """Whether a file can be read from the middle; `blocks`: blank lines divide plain text into documents."""
    return kind in _DIVISIBLE and path.suffix.lower() not in _COMPRESSED and (blocks or kind != "text")


def read_file(path: Path, kind: str, reading: Reading) -> Iterator[RawDocument]:
    """Raw documents of one file: (place, text or Bad). `place` is `file:line` or `file row n`."""
    return read_range(FileRange(path, kind), reading)


def read_range(part: FileRange, reading: Reading) -> Iterator[RawDocument]:
    """Raw documents that begin in a range of a file, as `read_file` gives those of all of it.

    Where the range does not begin with the file, lines are told by their offset in bytes.
    """
    reader: Callable[[FileRange, Reading], Iterator[RawDocument]] = _READERS[part.format]
    try:
        yield from reader(part, reading)
    except (PermissionError, FileNotFoundError) as error:
        raise InputError(f"{part.path}: cannot be read ({error.strerror})") from None


def _open(path: Any) -> IO[bytes]:
    ours = isinstance(path, Path)
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(gzip.open(path if ours else open_remote(path), "rb"), _BUFFER_BYTES)
    if path.suffix.lower() == ".zst":
        packed = pa.input_stream(str(path) if ours else open_remote(path), compression="zstd")
        return io.BufferedReader(packed, _BUFFER_BYTES)
    return cast("IO[bytes]", path.open("rb") if ours else open_remote(path))


@dataclass(frozen=True)
class _Line:
    """`start`: its offset in the file, unpacked."""

    place: str
    start: int
    raw: bytes | Bad


def _lines(part: FileRange, max_bytes: int) -> Iterator[_Line]:
    """Lines from the first that begins in a range to the end of the file; one beyond `max_bytes` is not held."""
    path, number, start = part.path, 0, part.begin
    with _open(path) as file:
        try:
            if part.begin:
                file.seek(part.begin - 1)
                start += _pass_over(file) - 1
            while line := file.readline(max_bytes + 2):
                number += 1
                place = f"{path}, byte {start:,}" if part.begin else f"{path}:{number}"
                length = len(line)
                if length > max_bytes + 1 and not line.endswith(b"\n"):
                    length += _pass_over(file)
                    limit = f"max_document_bytes allows {max_bytes:,}"
                    yield _Line(place, start, Bad(f"{place}: a line of {length:,} bytes; {limit}"))
                else:
                    yield _Line(place, start, line)
                start += length
        except _CUT_SHORT as error:
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and error.errno:
                raise
            place = f"{path}:{number + 1}"
            yield _Line(place, start, Bad(f"{place}: the compressed file is cut short or damaged ({error})"))


def _pass_over(file: IO[bytes]) -> int:
    """Bytes up to the end of the line."""
    length = 0
    while line := file.readline(1 << 20):
        length += len(line)
        if line.endswith(b"\n"):
            break
    return length


def _decoded(raw: bytes, place: str) -> str | Bad:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Bad(f"{place}: not UTF-8 ({error.reason} at byte {error.start + 1})")


def _read_jsonl(part: FileRange, reading: Reading) -> Iterator[RawDocument]:
    # the line also holds the other fields and escapes: twice the text, and some more, is still fine
    for found in _lines(part, 2 * reading.max_bytes + (1 << 16)):
        if part.end is not None and found.start >= part.end:
            return
        raw, place = found.raw, found.place
        line = raw if isinstance(raw, Bad) else _decoded(raw.removeprefix(codecs.BOM_UTF8), place)
        if isinstance(line, Bad):
            yield place, line
        elif line.strip():
            yield place, _field_of_json(line, reading, place)


def _field_of_json(line: str, reading: Reading, place: str) -> str | Bad:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        hint = "; an array of documents is not JSON lines: write one object per line" if line[0] == "[" else ""
        return Bad(f"{place}: not valid JSON ({error}){hint}")
    if not isinstance(row, dict):
        return Bad(f"{place}: a line must be an object with the field {reading.text_field!r}, this is {_kind(row)}")
    return _field_of_row(row, reading, place)


def _field_of_row(row: dict[Any, Any], reading: Reading, place: str) -> str | Bad:
    if (field := reading.text_field) not in row:
        return Bad(f"{place}: there is no field {field!r}{did_you_mean(field, map(str, row))}")
    return reading.text(row[field], place)


def _kind(value: Any) -> str:
    """What a value is; not the value: a file of somebody else is not printed."""
    return type(value).__name__


def _read_csv(part: FileRange, reading: Reading, delimiter: str = ",") -> Iterator[RawDocument]:
    path = part.path
    faults: list[Bad] = []

    def texts() -> Iterator[str]:
        for found in _lines(part, reading.max_bytes):
            line = found.raw if isinstance(found.raw, Bad) else _decoded(found.raw, found.place)
            if isinstance(line, Bad):
                faults.append(line)
            else:
                yield line.removeprefix("\ufeff") if found.start == 0 else line

    previous = csv.field_size_limit(2**31 - 1)
    rows = csv.reader(texts(), delimiter=delimiter)
    header: list[str] | None = None
    try:
        for cells in rows:
            place = f"{path}:{rows.line_num}"
            yield from ((place, fault) for fault in faults)
            faults.clear()
            if header is None:
                header = cells
                if reading.text_field not in header:
                    raise InputError(
                        f"{place}: there is no column {reading.text_field!r}"
                        f"{did_you_mean(reading.text_field, header)}; set text_field"
                    )
            elif len(cells) != len(header):
                yield place, Bad(f"{place}: {len(cells)} cells in a table of {len(header)} columns")
            else:
                yield place, reading.text(cells[header.index(reading.text_field)], place)
        yield from ((str(path), fault) for fault in faults)
    except csv.Error as error:
        yield f"{path}:{rows.line_num}", Bad(f"{path}:{rows.line_num}: not a valid table ({error})")
    finally:
        csv.field_size_limit(previous)


def _read_tsv(part: FileRange, reading: Reading) -> Iterator[RawDocument]:
    return _read_csv(part, reading, "\t")


def _read_parquet(part: FileRange, reading: Reading) -> Iterator[RawDocument]:
    path = part.path
    try:
        file = pq.ParquetFile(path if isinstance(path, Path) else open_remote(path))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a valid parquet file ({str(error).splitlines()[0]})") from None
    with file:
        names = file.schema_arrow.names
        if reading.text_field not in names:
            hint = did_you_mean(reading.text_field, names)
            raise InputError(f"{path}: there is no column {reading.text_field!r}{hint}; set text_field")
        groups, number = _row_groups(file.metadata, part)
        try:
            for batch in file.iter_batches(batch_size=256, row_groups=groups, columns=[reading.text_field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    place = f"{path} row {number}"
                    yield place, reading.text(value, place)
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
            place = f"{path} row {number + 1}"
            yield place, Bad(f"{place}: the file is damaged ({str(error).splitlines()[0]})")


def _row_groups(metadata: Any, part: FileRange) -> tuple[list[int], int]:
    """Row groups that begin in a range, each of which is read whole, and the rows before them."""
    chosen: list[int] = []
    before = 0
    for number in range(metadata.num_row_groups):
        column = metadata.row_group(number).column(0)
        begin = column.data_page_offset
        if column.has_dictionary_page:
            begin = min(begin, column.dictionary_page_offset)
        if part.begin <= begin and (part.end is None or begin < part.end):
            chosen.append(number)
        elif not chosen:
            before += metadata.row_group(number).num_rows
    return chosen, before


def _read_text(part: FileRange, reading: Reading) -> Iterator[RawDocument]:
    if reading.blocks:
        yield from _read_blocks(part, reading)
        return
    path = part.path
    try:
        with _open(path) as file:
            raw = file.read(reading.max_bytes + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield str(path), Bad(f"{path}: the compressed file is cut short or damaged ({error})")
        return
    if len(raw) > reading.max_bytes:
        yield (
            str(path),
            Bad(
                f"{path}: longer than max_document_bytes ({reading.max_bytes:,}); "
                "set source.documents: blocks if blank lines divide it into documents"
            ),
        )
        return
    yield str(path), _decoded_lines(raw, path)


def _decoded_lines(raw: bytes, path: Path) -> str | Bad:
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return Bad(f"{path}:{line}: not UTF-8 ({error.reason})")


def _read_blocks(part: FileRange, reading: Reading) -> Iterator[RawDocument]:
    """A block belongs to the range in which the blank line before it begins, the first to that of the file's begin."""
    block: list[str] = []
    size, first, fault, is_ours = 0, "", None, part.begin == 0
    for found in _lines(part, reading.max_bytes):
        line = found.raw if isinstance(found.raw, Bad) else _decoded(found.raw, found.place)
        if isinstance(line, str) and not line.strip():
            if block or fault:
                yield first, fault or _joined(block, size, reading, first)
                block, size, fault = [], 0, None
            is_ours = part.end is None or found.start < part.end
            if not is_ours:
                return
        elif not is_ours:
            if part.end is not None and found.start >= part.end:
                return
        elif isinstance(line, Bad):
            first = first if block or fault else found.place
            fault = fault or line
        else:
            first = first if block or fault else found.place
            size += len(line)
            if size <= reading.max_bytes:
                block.append(line.removeprefix("\ufeff"))
    if block or fault:
        yield first, fault or _joined(block, size, reading, first)


def _joined(block: list[str], size: int, reading: Reading, place: str) -> str | Bad:
    if size > reading.max_bytes:
        return Bad(f"{place}: a block of {size:,} characters; max_document_bytes is {reading.max_bytes:,}")
    return "".join(block).replace("\r\n", "\n").rstrip("\n")


_READERS: dict[str, Callable[[FileRange, Reading], Iterator[RawDocument]]] = {
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "text": _read_text,
}
