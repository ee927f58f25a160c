"""Documents of a split of a domain: the one place that decides what is read.

Every rule of the card acts here, in this order: text that cannot be read, the held-out split, repeated
documents, the limit `take_bytes`. What was left out is counted in a `Tally`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lifelong.errors import InputError, UnknownNameError
from lifelong.stream.cards.document import Bad, Document, RawDocument
from lifelong.stream.cards.domain import SPLITS, Domain
from lifelong.stream.cards.overlap import DuplicateFilter
from lifelong.stream.cards.pieces import FileRange

_REASONS_KEPT = 5
TELL_EVERY = 1_000_000  # bytes


@dataclass
class Tally:
    """Counts of what a reading yielded and left out; filled while the documents are drawn."""

    documents: int = 0
    bytes: int = 0
    empty: int = 0
    bad: int = 0
    duplicates: int = 0
    bad_reasons: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def read_documents(domain: Domain, split: str, tally: Tally | None = None) -> Iterator[Document]:
    """Documents of a split, in the order of the source.

    Args:
        domain: the card.
        split: train, valid or test.
        tally: filled while reading, if given.

    Raises:
        InputError: a file is missing, a document is bad (unless the card says `on_bad_document: skip`), or
            the split holds no document.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS, f"domain {domain.name}")
    tally = tally if tally is not None else Tally()
    documents = _of_split(domain, split, tally)
    if domain.dedup != "none" and split == "train":
        documents = _without_duplicates(domain, documents, tally)
    limit = domain.take_bytes if split == "train" else None
    for document in documents:
        tally.documents += 1
        tally.bytes += document.num_bytes
        yield document
        if limit is not None and tally.bytes >= limit:
            break
    if not tally.documents:
        raise InputError(_empty_message(domain, split, tally))


def with_progress(documents: Iterable[Document], read: Callable[[int], None]) -> Iterator[Document]:
    """Pass documents on and tell, about once a megabyte, how many bytes of text have been passed on."""
    total = told = 0
    for document in documents:
        total += document.num_bytes
        if total - told >= TELL_EVERY:
            told = total
            read(total)
        yield document


def source_fingerprint(domain: Domain, split: str, memo_dir: Path | None = None) -> str:
    """SHA-256 over the content of the source and the settings that decide what is read from it.

    What pins the content the source says: for files their digests (read once per path, size and time where
    `memo_dir` is given), for the hub the revision; else it is the documents.
    """
    parts: dict[str, Any] = {"split": split, "options": domain.options}
    parts.update(domain.source.fingerprint(domain, memo_dir) or _content(domain))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _content(domain: Domain) -> dict[str, Any]:
    source = domain.source
    keys = (
        [document.key for document in _from_source(domain, split, Tally())]
        for split in SPLITS
        if split in source.own_splits
    )
    return {source.kind: [*source.model_dump(mode="json").values(), *keys]}


def read_piece(domain: Domain, piece: Sequence[FileRange], tally: Tally) -> Iterator[Document]:
    """Documents of the training split in a piece of the corpus.

    Raises:
        InputError: see `read_documents`; a piece may hold no document.
    """
    for document in _without_held_out(domain, "train", _of_piece(domain, piece, tally)):
        tally.documents += 1
        tally.bytes += document.num_bytes
        yield document


def read_splits(
    domain: Domain, tallies: Mapping[str, Tally], pieces: Iterable[Sequence[FileRange]] | None = None
) -> Iterator[tuple[str, Document]]:
    """Documents of the training text with the split that they belong to; of all of it, or of some pieces.

    Raises:
        InputError: see `read_documents`.
    """
    found = _from_source(domain, "train", tallies["train"])
    if pieces is not None:
        found = (document for piece in pieces for document in _of_piece(domain, piece, tallies["train"]))
    split_of = _splits(domain)
    for document in found:
        split = split_of(document)
        tallies[split].documents += 1
        tallies[split].bytes += document.num_bytes
        yield split, document


def _of_piece(domain: Domain, piece: Sequence[FileRange], tally: Tally) -> Iterator[Document]:
    from lifelong.stream.cards.readers import read_range

    reading = domain.source.reading_of(domain, domain.reading)
    return _readable(domain, (row for part in piece for row in read_range(part, reading)), tally)


def _of_split(domain: Domain, split: str, tally: Tally) -> Iterator[Document]:
    own = domain.source.own_splits
    if split in own and split != "train":
        return _from_source(domain, split, tally)
    return _without_held_out(domain, split, _from_source(domain, "train", tally))


def _without_held_out(domain: Domain, split: str, documents: Iterator[Document]) -> Iterator[Document]:
    """Those of the training text that belong to a split."""
    split_of = _splits(domain)
    return (document for document in documents if split_of(document) == split)


def _splits(domain: Domain) -> Callable[[Document], str]:
    """Tells the split of a document of the training text, from which those are cut that the source does not have."""
    cut, share = [name for name in ("valid", "test") if name not in domain.source.own_splits], domain.held_out

    def split_of(document: Document) -> str:
        # the first 53 bits of the key, as a number in [0, 1): equal texts always fall on the same side
        drawn = int(int(document.key[:16], 16) / 2.0**64 / share)
        return cut[drawn] if drawn < len(cut) else "train"

    return split_of


def _from_source(domain: Domain, split: str, tally: Tally) -> Iterator[Document]:
    return _readable(domain, domain.source.read(domain, split, domain.reading), tally)


def _readable(domain: Domain, rows: Iterable[RawDocument], tally: Tally) -> Iterator[Document]:
    for place, text in rows:
        problem = text.reason if isinstance(text, Bad) else _problem(domain, place, text)
        if problem is None and isinstance(text, str):
            if text.strip():
                encoded = text.encode("utf-8")
                key = hashlib.blake2b(encoded, digest_size=16).hexdigest()
                yield Document(text, key, len(encoded))
            else:
                tally.empty += 1
            continue
        if domain.on_bad_document == "error":
            raise InputError(f"{problem}; repair it, or set on_bad_document: skip in the card of {domain.name!r}")
        tally.bad += 1
        if len(tally.bad_reasons) < _REASONS_KEPT:
            tally.bad_reasons.append(str(problem))


def _problem(domain: Domain, place: str, text: str) -> str | None:
    try:
        size = len(text) if text.isascii() else len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        return f"{place}: half a surrogate pair (\\u{ord(text[error.start]):04x}) is not a character"
    if size > domain.max_document_bytes:
        return f"{place}: a document of {size:,} bytes; max_document_bytes is {domain.max_document_bytes:,}"
    if "\x00" in text:
        return f"{place}: a NUL character: this is not text"
    return None


def _without_duplicates(domain: Domain, documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
    seen = DuplicateFilter(near=domain.dedup == "near")
    for split in ("valid", "test"):
        for document in _of_split(domain, split, Tally()):
            seen.is_new(document)
    for document in documents:
        if seen.is_new(document):
            yield document
        else:
            tally.duplicates += 1


def _empty_message(domain: Domain, split: str, tally: Tally) -> str:
    left_out = f" ({tally.empty} empty, {tally.bad} bad, {tally.duplicates} repeated)"
    remedy = ""
    if split not in domain.source.own_splits:
        remedy = (
            f"; it is cut from train by document hash (held_out: {domain.held_out:g}): "
            f"raise held_out, or name source.{split}"
        )
    return f"{domain.path or 'domain ' + domain.name}: the {split} split holds no document{left_out}{remedy}"
