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
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lifelong.errors import InputError, did_you_mean
from lifelong.stream.cards.document import Bad, RawDocument, Reading

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


def read_file(path: Path, kind: str, reading: Reading) -> Iterator[RawDocument]:
    """Raw documents of one file: (place, text or Bad). `place` is `file:line` or `file row n`."""
    reader: Callable[[Path, Reading], Iterator[RawDocument]] = _READERS[kind]
    try:
        yield from reader(path, reading)
    except (PermissionError, FileNotFoundError) as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return io.BufferedReader(gzip.open(path, "rb"), _BUFFER_BYTES)
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), _BUFFER_BYTES)
    return path.open("rb")


def _lines(path: Path, max_bytes: int) -> Iterator[tuple[int, bytes | Bad]]:
    """Lines with their numbers from 1; a line beyond `max_bytes` is passed over without being held."""
    number = 0
    with _open(path) as file:
        try:
            while line := file.readline(max_bytes + 2):
                number += 1
                if len(line) > max_bytes + 1 and not line.endswith(b"\n"):
                    length = len(line)
                    while line and not line.endswith(b"\n"):
                        line = file.readline(1 << 20)
                        length += len(line)
                    limit = f"max_document_bytes allows {max_bytes:,}"
                    yield number, Bad(f"{path}:{number}: a line of {length:,} bytes; {limit}")
                else:
                    yield number, line
        except _CUT_SHORT as error:
            if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) and error.errno:
                raise
            yield (
                number + 1,
                Bad(f"{path}:{number + 1}: the compressed file is cut short or damaged ({error})"),
            )


def _decoded(raw: bytes, place: str) -> str | Bad:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Bad(f"{place}: not UTF-8 ({error.reason} at byte {error.start + 1})")


def _read_jsonl(path: Path, reading: Reading) -> Iterator[RawDocument]:
    # the line also holds the other fields and escapes: twice the text, and some more, is still fine
    for number, raw in _lines(path, 2 * reading.max_bytes + (1 << 16)):
        place = f"{path}:{number}"
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


def _read_csv(path: Path, reading: Reading, delimiter: str = ",") -> Iterator[RawDocument]:
    faults: list[Bad] = []

    def texts() -> Iterator[str]:
        for number, raw in _lines(path, reading.max_bytes):
            line = raw if isinstance(raw, Bad) else _decoded(raw, f"{path}:{number}")
            if isinstance(line, Bad):
                faults.append(line)
            else:
                yield line.removeprefix("\ufeff") if number == 1 else line

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


def _read_tsv(path: Path, reading: Reading) -> Iterator[RawDocument]:
    return _read_csv(path, reading, "\t")


def _read_parquet(path: Path, reading: Reading) -> Iterator[RawDocument]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a valid parquet file ({str(error).splitlines()[0]})") from None
    with file:
        names = file.schema_arrow.names
        if reading.text_field not in names:
            hint = did_you_mean(reading.text_field, names)
            raise InputError(f"{path}: there is no column {reading.text_field!r}{hint}; set text_field")
        number = 0
        try:
            for batch in file.iter_batches(batch_size=256, columns=[reading.text_field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    place = f"{path} row {number}"
                    yield place, reading.text(value, place)
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
            place = f"{path} row {number + 1}"
            yield place, Bad(f"{place}: the file is damaged ({str(error).splitlines()[0]})")


def _read_text(path: Path, reading: Reading) -> Iterator[RawDocument]:
    if reading.blocks:
        yield from _read_blocks(path, reading)
        return
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


def _read_blocks(path: Path, reading: Reading) -> Iterator[RawDocument]:
    block: list[str] = []
    size, first, fault = 0, 1, None
    for number, raw in _lines(path, reading.max_bytes):
        line = raw if isinstance(raw, Bad) else _decoded(raw, f"{path}:{number}")
        if isinstance(line, Bad):
            fault = fault or line
        elif line.strip():
            first = first if block or fault else number
            size += len(line)
            if size <= reading.max_bytes:
                block.append(line.removeprefix("\ufeff"))
            continue
        elif block or fault:
            yield f"{path}:{first}", fault or _joined(block, size, reading, f"{path}:{first}")
            block, size, fault = [], 0, None
    if block or fault:
        yield f"{path}:{first}", fault or _joined(block, size, reading, f"{path}:{first}")


def _joined(block: list[str], size: int, reading: Reading, place: str) -> str | Bad:
    if size > reading.max_bytes:
        return Bad(f"{place}: a block of {size:,} characters; max_document_bytes is {reading.max_bytes:,}")
    return "".join(block).replace("\r\n", "\n").rstrip("\n")


_READERS: dict[str, Callable[[Path, Reading], Iterator[RawDocument]]] = {
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "text": _read_text,
}
