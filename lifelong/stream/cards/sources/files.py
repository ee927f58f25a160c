"""Local files by glob pattern: JSON lines, tables or plain text."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from lifelong.stream.cards.document import RawDocument, Reading
from lifelong.stream.cards.paths import CardFile, Patterns, expand_patterns, file_digest, outside_names
from lifelong.stream.cards.pieces import CorpusFile
from lifelong.stream.cards.remote import is_remote, open_remote, size_of
from lifelong.stream.cards.sources import Source

_RATIO_BYTES = 1 << 20


class FileSource(Source):
    """Local files by glob pattern; paths are relative to the card, `$VARIABLES` are expanded."""

    title: ClassVar[str] = "files"

    files: Patterns = Field(description="files of the training split")
    valid: Patterns | None = Field(None, description="files of the validation split; cut by hash if absent")
    test: Patterns | None = Field(None, description="files of the test split; cut by hash if absent")
    format: Literal["jsonl", "parquet", "csv", "tsv", "text"] | None = Field(None, description="by file name if absent")
    documents: Literal["file", "blocks"] | None = Field(
        None,
        description="plain text only: a whole file or a blank-line block is one document; "
        "if absent, blocks when one file matches, else file",
    )

    def outside(self, card: CardFile) -> Iterator[str]:
        """Patterns of all splits that are full paths, or made of other variables than `$LIFELONG_...`."""
        return outside_names(card, {"files": self.files, "valid": self.valid, "test": self.test})

    def read(self, card: CardFile, split: str, reading: Reading) -> Iterator[RawDocument]:
        """(place, text or Bad) of every document; the formats of all files are known before the first is read."""
        from lifelong.stream.cards.readers import format_of, read_file

        paths = self._paths(card, split)
        reading = self.reading_of(card, reading)
        formats = [(path, format_of(path, self.format)) for path in paths]
        for path, name in formats:
            yield from read_file(path, name, reading)

    def files_of(self, card: CardFile) -> list[CorpusFile]:
        """All of them."""
        from lifelong.stream.cards.readers import format_of, is_divisible

        blocks = self._by_blocks(card)
        formats = [(path, format_of(path, self.format)) for path in self._paths(card, "train")]
        return [CorpusFile(path, kind, whole=not is_divisible(path, kind, blocks=blocks)) for path, kind in formats]

    def reading_of(self, card: CardFile, reading: Reading) -> Reading:
        """Plain text by file or by block."""
        return replace(reading, blocks=self._by_blocks(card))

    def fingerprint(self, card: CardFile, memo_dir: Path | None) -> dict[str, Any]:
        """Digests of the files of all splits; a file is read once per path, size and time where `memo_dir` is given."""
        digests = {
            split: [[path.suffixes, file_digest(path, memo_dir)] for path in self._paths(card, split)]
            for split in ("train", "valid", "test")
        }
        return {**digests, "reading": [self.format, self._by_blocks(card)]}

    def num_bytes(self, card: CardFile) -> float:
        """Bytes of the training files, unpacked, by what their beginnings unpack to."""
        return sum(size_of(path) * _unpacked(path) for path in self._paths(card, "train"))

    @classmethod
    def portable(cls, given: Mapping[str, Any], out: Path) -> dict[str, Any]:
        """Patterns are given relative to the working folder."""
        patterns = {
            key: [_portable(pattern, out) for pattern in given[key]]
            for key in ("files", "valid", "test")
            if key in given
        }
        return {**given, **patterns}

    def _paths(self, card: CardFile, split: str) -> list[Path]:
        key = "files" if split == "train" else split
        patterns: tuple[str, ...] | None = getattr(self, key)
        return expand_patterns(card, patterns, f"source.{key}") if patterns else []

    def _by_blocks(self, card: CardFile) -> bool:
        if self.documents is not None:
            return self.documents == "blocks"
        return len(self._paths(card, "train")) == 1


def _unpacked(path: Path) -> float:
    if path.suffix != ".gz":
        return 1.0
    with path.open("rb") if isinstance(path, Path) else open_remote(path) as stream:
        packed = stream.read(_RATIO_BYTES)
    try:
        return len(zlib.decompressobj(wbits=31).decompress(packed)) / max(1, len(packed))
    except zlib.error:
        return 1.0


def _portable(pattern: str, out: Path) -> str:
    """The pattern as a card in `out` must say it: below the card, below $LIFELONG_DATA, or in full."""
    if pattern.startswith(("$", "~")) or is_remote(pattern):
        return pattern
    full = Path(os.path.normpath(Path.cwd() / pattern))
    if full.is_relative_to(out.resolve()):
        return str(full.relative_to(out.resolve()))
    data = os.environ.get("LIFELONG_DATA")
    if data and full.is_relative_to(Path(data).resolve()):
        return str(Path("$LIFELONG_DATA") / full.relative_to(Path(data).resolve()))
    return str(full)


SOURCE = FileSource
