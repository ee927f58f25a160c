"""Held-out documents as they are evaluated: tokenised alone, kept in the run so that it needs no corpus later."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifelong.errors import CorruptionError
from lifelong.stream.domain import Domain
from lifelong.stream.encoding import Encoder
from lifelong.stream.source import Document, read_documents

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


class Heldout:
    """The held-out documents of one domain, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(self.path), "r")).read_all()
            self._facts: dict[str, Any] = json.loads(self._table.schema.metadata[b"lifelong"])
        except (OSError, pa.ArrowInvalid, TypeError, KeyError, ValueError) as error:
            raise CorruptionError(f"{path}: no readable held-out documents ({error})") from None

    @classmethod
    def open(cls, path: Path) -> Heldout:
        """The held-out documents of a file that `write_heldout` wrote."""
        return cls(path)

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
        """Of the tokenizer that made the ids."""
        return str(self._facts["tokenizer"])

    @property
    def num_tokens(self) -> int:
        """Tokens that a CLM predicts: all but the one in front of each document."""
        return sum(len(self.ids(i)) - 1 for i in range(len(self)))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def ids(self, index: int) -> NDArray[np.int32]:
        """Tokens of a document, with BOS (EOS where there is none, or CLS) in front."""
        return np.array(self._table["ids"][index].values.to_numpy(), dtype=np.int32)

    def num_bytes(self, index: int) -> int:
        """UTF-8 bytes of the text of a document."""
        return int(self._table["num_bytes"][index].as_py())

    def key(self, index: int) -> str:
        """Hash of the text of a document."""
        return str(self._table["key"][index].as_py())

    def text(self, index: int) -> str:
        """Text of a document."""
        return str(self._table["text"][index].as_py())


def write_heldout(
    domain: Domain, split: str, tokenizer: PreTrainedTokenizerBase, tokens: int | None, path: Path
) -> Heldout:
    """Keeps whole documents of a split, in order, until `tokens` predicted tokens are reached (None: all).

    Raises:
        InputError: the split holds no document, or one that cannot be read.
    """
    encoder = Encoder(tokenizer)
    facts = {"domain": domain.name, "split": split, "tokenizer": encoder.fingerprint}
    schema = _SCHEMA.with_metadata({"lifelong": json.dumps(facts)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    reached = 0
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            pending: list[tuple[Document, NDArray[np.int32]]] = []
            for document in read_documents(domain, split):
                ids = encoder.held_out(document.text)
                reached += len(ids) - 1
                pending.append((document, ids))
                if len(pending) == _DOCUMENTS_PER_BATCH:
                    writer.write_batch(_batch(pending, schema))
                    pending = []
                if tokens is not None and reached >= tokens:
                    break
            if pending:
                writer.write_batch(_batch(pending, schema))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Heldout(path)


def _batch(rows: list[tuple[Document, NDArray[np.int32]]], schema: Any) -> Any:
    columns = [
        pa.array([document.key for document, _ in rows], pa.string()),
        pa.array([document.text for document, _ in rows], pa.large_string()),
        pa.array([document.num_bytes for document, _ in rows], pa.int64()),
        pa.array([ids for _, ids in rows], pa.list_(pa.int32())),
    ]
    return pa.record_batch(columns, schema=schema)
