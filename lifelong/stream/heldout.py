"""Held-out documents as they are evaluated: tokenised alone, kept in the run so that no corpus is needed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifelong.errors import CorruptionError
from lifelong.stream.cards.document import Document
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import Domain
from lifelong.stream.tokenizers.encoding import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("text", pa.large_string()),
        ("num_bytes", pa.int64()),
        ("ids", pa.list_(pa.int32())),
    ]
)
_DOCUMENTS_PER_BATCH = 64
_FILE = "documents.arrow"


class Heldout:
    """The held-out documents of one domain, memory-mapped from the folder that `write_heldout` wrote."""

    def __init__(self, path: Path, num_documents: int | None = None) -> None:
        self.path = Path(path)
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(self.path / _FILE), "r")).read_all()
            self._facts: dict[str, Any] = json.loads(self._table.schema.metadata[b"lifelong"])
        except (OSError, pa.ArrowInvalid, TypeError, KeyError, ValueError) as error:
            raise CorruptionError(f"{path}: no readable held-out documents ({error})") from None
        total = int(self._table.num_rows)
        self._length = total if num_documents is None else min(total, num_documents)

    @classmethod
    def open(cls, path: Path) -> Heldout:
        """The held-out documents of a folder."""
        return cls(path)

    def head(self, tokens: int) -> Heldout:
        """The first whole documents that reach `tokens` predicted tokens together."""
        reached = 0
        for index in range(len(self)):
            reached += len(self.ids(index)) - 1
            if reached >= tokens:
                return self.first(index + 1)
        return self

    def first(self, num_documents: int) -> Heldout:
        """The first documents."""
        return Heldout(self.path, num_documents)

    @property
    def domain(self) -> str:
        """Name of the domain."""
        return str(self._facts["domain"])

    @property
    def split(self) -> str:
        """The split they come from."""
        return str(self._facts["split"])

    @property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of the tokenizer that made the ids."""
        return str(self._facts["tokenizer"])

    @property
    def num_tokens(self) -> int:
        """Tokens that a CLM predicts: all but the one in front of each document."""
        return sum(len(self.ids(i)) - 1 for i in range(len(self)))

    def __len__(self) -> int:
        return self._length

    def ids(self, index: int) -> NDArray[np.int32]:
        """Tokens of a document, with BOS (EOS where there is none, or CLS) in front."""
        return np.array(self._value("ids", index).values.to_numpy(), dtype=np.int32)

    def num_bytes(self, index: int) -> int:
        """UTF-8 bytes of the text of a document."""
        return int(self._value("num_bytes", index).as_py())

    def key(self, index: int) -> str:
        """Hash of the text of a document."""
        return str(self._value("key", index).as_py())

    def text(self, index: int) -> str:
        """Text of a document."""
        return str(self._value("text", index).as_py())

    def _value(self, column: str, index: int) -> Any:
        if not 0 <= index < self._length:
            raise IndexError(f"document {index} of {self._length} in {self.path}")
        return self._table[column][index]


def write_heldout(
    domain: Domain, split: str, tokenizer: PreTrainedTokenizerBase, tokens: int | None, path: Path
) -> Heldout:
    """Keeps whole documents of a split, in order, until `tokens` predicted tokens are reached (None: all).

    Args:
        domain: the card.
        split: valid or test.
        tokenizer: of the run.
        tokens: how many are enough.
        path: a folder, made if need be; the documents appear in it complete or not at all.

    Raises:
        InputError: the split holds no document, or one that cannot be read.
    """
    encoder = Encoder(tokenizer)
    facts = {"domain": domain.name, "split": split, "tokenizer": encoder.fingerprint}
    schema = _SCHEMA.with_metadata({"lifelong": json.dumps(facts)})
    path.mkdir(parents=True, exist_ok=True)
    temporary = path / f".{_FILE}.{os.getpid()}.part"
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            pending: list[tuple[Document, NDArray[np.int32]]] = []
            reached = 0
            for document in (_as_read(document, encoder) for document in read_documents(domain, split)):
                pending.append((document, encoder.encode_for_scoring(document.text)))
                reached += len(pending[-1][1]) - 1
                if len(pending) == _DOCUMENTS_PER_BATCH:
                    writer.write_batch(_batch(pending, schema))
                    pending = []
                if tokens is not None and reached >= tokens:
                    break
            if pending:
                writer.write_batch(_batch(pending, schema))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path / _FILE)
    finally:
        temporary.unlink(missing_ok=True)
    return Heldout(path)


def _as_read(document: Document, encoder: Encoder) -> Document:
    """The document as the model sees it, which its bytes are counted of; its key stays."""
    text = encoder.rendered(document.text)
    return document if text is document.text else replace(document, text=text, num_bytes=len(text.encode()))


def _batch(rows: list[tuple[Document, NDArray[np.int32]]], schema: Any) -> Any:
    columns = [
        pa.array([document.key for document, _ in rows], pa.string()),
        pa.array([document.text for document, _ in rows], pa.large_string()),
        pa.array([document.num_bytes for document, _ in rows], pa.int64()),
        pa.array([ids for _, ids in rows], pa.list_(pa.int32())),
    ]
    return pa.record_batch(columns, schema=schema)
