"""Blocks of tokens on disk: an Arrow file that is memory-mapped, so any row costs the same at any size.

A block holds up to `sequence_length` tokens of one or more documents. `starts` are the offsets in the block
where a segment (a document or a piece of one) begins, `offsets` how far into its document each segment
begins: 0 where the document does. Ids are kept in 16 bits where the vocabulary allows it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifelong.errors import CorruptionError

ROWS_PER_BATCH = 256
IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens of one packed row: `ids` [n <= T], and [number of segments] of `starts` and `offsets`."""

    ids: IntArray
    starts: IntArray
    offsets: IntArray


class BlockWriter:
    """Writes blocks to an Arrow file that appears under its name only when it is complete."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.path = path
        self.num_blocks = 0
        self.num_tokens = 0
        self._id_type = pa.uint16() if vocab_size <= 1 << 16 else pa.int32()
        self._schema = pa.schema(
            [
                ("ids", pa.list_(self._id_type)),
                ("starts", pa.list_(pa.int32())),
                ("offsets", pa.list_(pa.int32())),
            ]
        )
        self._pending: list[Block] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._sink = pa.OSFile(str(self._temporary), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)

    def append(self, block: Block) -> None:
        """Adds one block."""
        self._pending.append(block)
        self.num_blocks += 1
        self.num_tokens += len(block.ids)
        if len(self._pending) == ROWS_PER_BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            columns = [
                _list_array([block.ids for block in self._pending], self._id_type),
                _list_array([block.starts for block in self._pending], pa.int32()),
                _list_array([block.offsets for block in self._pending], pa.int32()),
            ]
            self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
            self._pending = []

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            self._sink.close()
            if kind is None:
                with self._temporary.open("rb") as file:
                    os.fsync(file.fileno())
                self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


def _list_array(rows: Sequence[NDArray[Any]], value_type: Any) -> Any:
    ends = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=ends[1:])
    values = np.concatenate(rows).astype(value_type.to_pandas_dtype(), copy=False)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values))


def write_blocks(path: Path, blocks: Iterable[Block], vocab_size: int) -> BlockStore:
    """Writes all blocks to `path` and opens them."""
    with BlockWriter(path, vocab_size) as writer:
        for block in blocks:
            writer.append(block)
    return BlockStore(path)


class BlockStore(Sequence[Block]):
    """Blocks of one Arrow file, memory-mapped; random access copies one row, nothing else is held."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(self.path), "r"))
        except (OSError, pa.ArrowInvalid) as error:
            raise CorruptionError(f"{path}: no readable store of token blocks ({error})") from None
        self._columns: dict[int, tuple[NDArray[Any], ...]] = {}
        batches = self._reader.num_record_batches
        self._rows_per_batch = len(self._of_batch(0)[1]) - 1 if batches else 1
        last = len(self._of_batch(batches - 1)[1]) - 1 if batches else 0
        self._length: int = max(0, batches - 1) * self._rows_per_batch + last
        self._num_tokens: int | None = None

    def _of_batch(self, number: int) -> tuple[NDArray[Any], ...]:
        if number not in self._columns:
            batch = self._reader.get_batch(number)
            views: list[NDArray[Any]] = []
            for column in batch.columns:
                views += [column.values.to_numpy(), column.offsets.to_numpy()]
            self._columns[number] = tuple(views)
        return self._columns[number]

    def __len__(self) -> int:
        return self._length

    @property
    def num_tokens(self) -> int:
        """Tokens in all blocks."""
        if self._num_tokens is None:
            self._num_tokens = int(self.lengths().sum())
        return self._num_tokens

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the blocks were made from: content of the source, tokenizer, settings.

        Only for the stores of `tokenize_domain`, which keep a manifest beside the blocks.
        """
        manifest = json.loads((self.path.parent / "manifest.json").read_text(encoding="utf-8"))
        return hashlib.sha256(json.dumps(manifest["settings"], sort_keys=True).encode()).hexdigest()

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each block [number of blocks]."""
        parts = [np.diff(self._of_batch(n)[1]) for n in range(self._reader.num_record_batches)]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"block {index} of {len(self)} in {self.path}")
        number, row = divmod(int(position), self._rows_per_batch)
        ids, id_ends, starts, start_ends, offsets, offset_ends = self._of_batch(number)
        return Block(
            ids[id_ends[row] : id_ends[row + 1]].astype(np.int32),
            starts[start_ends[row] : start_ends[row + 1]].astype(np.int32),
            offsets[offset_ends[row] : offset_ends[row + 1]].astype(np.int32),
        )

    def __iter__(self) -> Iterator[Block]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[type[BlockStore], tuple[Path]]:
        return BlockStore, (self.path,)


class Blocks(Protocol):
    """Anything with a length whose items are blocks."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Block: ...


class StoredBlocks(Blocks, Protocol):
    """Blocks of one corpus whose lengths are known."""

    @property
    def num_tokens(self) -> int:
        """Tokens in all blocks."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the blocks were made from."""

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each block [number of blocks]."""
