"""Sparse teacher targets on disk, found by what the model sees: `manifest.json` and `shards/NNNNN.arrow`.

A row's key is the hash of its tokens, positions and labels, so that targets survive shuffling, other batch sizes,
padding and ranks. Shards are memory-mapped Arrow files, written whole or not at all; each carries its codebook.
A cache that was cut short resumes at the next shard; without `complete` in its manifest it is not read.

Shape suffixes: B sequences, T tokens, N predicted tokens, K kept entries.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from lifelong.errors import CorruptionError, InputError
from lifelong.files import named_entry, read_json, sync_folder, write_json
from lifelong.inherit.entries import Codebook, decode, encode
from lifelong.inherit.sparse import Scheme, SparseRows, scheme_from_json
from lifelong.lm.batch import on_device, on_host, sequences
from lifelong.lm.targets import CachedTarget

FORMAT = 1
TOKENS_PER_SHARD = 1 << 19
KEY_BYTES = 16
_SCHEMA = pa.schema([("key", pa.binary(KEY_BYTES)), ("check", pa.uint32()), ("payload", pa.binary())])


@dataclass(frozen=True)
class CacheSettings:
    """Settings that targets depend on; two caches with equal settings hold equal targets.

    Args:
        scheme: name and settings of the sparse scheme.
        temperature: tau at which the probabilities were taken.
        vocab_size: tokens of the teacher's vocabulary.
        tokenizer: fingerprint of the tokenizer.
        teacher: fingerprint of the teacher's weights.
        objective: clm or mlm.
        sequence_length: tokens of a block.
        mask_seed: for mlm, of the masks.
        mask_patterns: for mlm, how many masks each block has.
        seed: of the sampling.
        corpora: fingerprint of the blocks of each domain.
        tokens: maximum tokens per domain; None: all of them.
    """

    scheme: Mapping[str, Any]
    temperature: float
    vocab_size: int
    tokenizer: str
    teacher: str
    objective: str
    sequence_length: int
    mask_seed: int = 0
    mask_patterns: int = 0
    seed: int = 0
    corpora: Mapping[str, str] = field(default_factory=dict)
    tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def cached_target(
    ids_NK: NDArray[np.int32], probabilities_NK: NDArray[np.float32], batch: Mapping[str, Tensor]
) -> CachedTarget:
    """What was read, on the device of a batch."""
    ids, probabilities = (on_device(values, batch["input_ids"]) for values in (ids_NK, probabilities_NK))
    return CachedTarget(ids, probabilities, highest=int(ids_NK.max(initial=-1)))


def block_keys(batch: Mapping[str, Tensor]) -> list[bytes]:
    """Hash of what the model sees and has to predict in each row of a batch, padding left out."""
    arrays = [on_host(batch, name).astype(np.int32) for name in ("input_ids", "position_ids", "labels", "segment_ids")]
    keys = []
    for ids, positions, labels, segments in zip(*arrays, strict=True):
        inside = segments > 0
        digest = hashlib.blake2b(digest_size=KEY_BYTES)
        for values in (ids, positions, labels):
            digest.update(np.ascontiguousarray(values[inside]).tobytes())
        keys.append(digest.digest())
    return keys


class CacheWriter:
    """Writes a cache, or resumes one that was cut short.

    Args:
        folder: of the cache.
        settings: what the targets depend on.
        tokens_per_shard: predicted tokens that make a shard full.

    Raises:
        InputError: the folder holds a cache of other settings, or something else.
    """

    def __init__(self, folder: Path, settings: CacheSettings, tokens_per_shard: int = TOKENS_PER_SHARD) -> None:
        self.folder, self.settings, self.tokens_per_shard = folder, settings, tokens_per_shard
        self.scheme: Scheme = scheme_from_json(settings.scheme)
        manifest = folder / "manifest.json"
        if manifest.exists():
            _refuse_other(folder, read_json(manifest)["settings"], settings)
        elif folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty and holds no cache; choose another --out")
        else:
            (folder / "shards").mkdir(parents=True, exist_ok=True)
            write_json(manifest, {"format": FORMAT, "complete": False, "settings": settings.to_json(), "shards": []})
        state = read_json(manifest)
        self.complete: bool = state["complete"]
        self.shards: list[dict[str, Any]] = state["shards"]
        self._pending: list[tuple[bytes, SparseRows]] = []
        self._pending_tokens = 0
        self._pending_blocks = 0

    @property
    def blocks_done(self) -> int:
        """Blocks that are safely on disk, repeats counted: where writing resumes."""
        return sum(shard["blocks"] for shard in self.shards)

    @property
    def tokens_done(self) -> int:
        """Predicted tokens that are on disk."""
        return sum(shard["tokens"] for shard in self.shards)

    def add(self, key: bytes, rows: SparseRows | None) -> None:
        """The next block; None where the same block came before and nothing has to be stored."""
        self._pending_blocks += 1
        if rows is not None:
            self._pending.append((key, rows))
            self._pending_tokens += len(rows.counts)
        if self._pending_tokens >= self.tokens_per_shard:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one shard."""
        if not self._pending_blocks:
            return
        name = f"{len(self.shards):05d}.arrow"
        book = Codebook.for_rows([rows for _, rows in self._pending], self.settings.vocab_size)
        payloads = [encode(rows, self.scheme, book) for _, rows in self._pending]
        facts = {"widths": list(book.widths), "settings": self.settings.to_json()}
        kind = "<u2" if self.settings.vocab_size <= 1 << 16 else "<u4"
        # of the batch and not of the schema, which an Arrow file holds twice
        metadata = {"lifelong": json.dumps(facts), "tokens": book.tokens.astype(kind).tobytes()}
        columns = [
            pa.array([key for key, _ in self._pending], pa.binary(KEY_BYTES)),
            pa.array([zlib.crc32(payload) for payload in payloads], pa.uint32()),
            pa.array(payloads, pa.binary()),
        ]
        path = self.folder / "shards" / name
        temporary = path.with_name(f".{name}.part")
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            writer.write_batch(pa.record_batch(columns, schema=_SCHEMA), custom_metadata=metadata)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
        self.shards.append(
            {"name": name, "blocks": self._pending_blocks, "tokens": self._pending_tokens, "bytes": path.stat().st_size}
        )
        self._write_manifest()
        self._pending, self._pending_tokens, self._pending_blocks = [], 0, 0

    def finish(self) -> None:
        """Write the rest and mark the cache complete."""
        self.flush()
        self.complete = True
        self._write_manifest()

    def _write_manifest(self) -> None:
        write_json(
            self.folder / "manifest.json",
            {"format": FORMAT, "complete": self.complete, "settings": self.settings.to_json(), "shards": self.shards},
        )


def _refuse_other(folder: Path, found: Mapping[str, Any], wanted: CacheSettings) -> None:
    different = [key for key, value in wanted.to_json().items() if found.get(key) != value]
    if different:
        named = "; ".join(f"{key} is {found.get(key)!r} there, {wanted.to_json()[key]!r} here" for key in different)
        raise InputError(f"{folder}: holds a cache of other settings ({named}); choose another --out")


class TargetCache:
    """A complete cache, memory-mapped; blocks are found by key, in any order.

    Raises:
        InputError: no cache, or one that is not complete.
        CorruptionError: a shard is missing, cut short, or not what was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "manifest.json").is_file():
            raise InputError(f"{folder}: is not a cache of targets (no manifest.json); `lifelong cache` writes one")
        manifest = read_json(self.folder / "manifest.json")
        if manifest.get("format") != FORMAT:
            raise InputError(f"{folder}: a cache of format {manifest.get('format')}, this version reads {FORMAT}")
        if not manifest["complete"]:
            done = sum(shard["blocks"] for shard in manifest["shards"])
            raise InputError(
                f"{folder}: the cache is not complete ({done:,} blocks are written); run the same `lifelong cache` "
                "again, it resumes where it stopped"
            )
        self.settings = CacheSettings(**manifest["settings"])
        self.scheme = scheme_from_json(self.settings.scheme)
        self.num_tokens = sum(shard["tokens"] for shard in manifest["shards"])
        shards = self.folder / "shards"
        self._shards = [_Shard(named_entry(shards, shard["name"]), shard["bytes"]) for shard in manifest["shards"]]
        keys = [shard.keys for shard in self._shards]
        first = np.concatenate([part[:, 0] for part in keys]) if keys else np.zeros(0, np.uint64)
        self._second = np.concatenate([part[:, 1] for part in keys]) if keys else np.zeros(0, np.uint64)
        owner = np.repeat(np.arange(len(keys)), [len(part) for part in keys])
        row = np.concatenate([np.arange(len(part)) for part in keys]) if keys else np.zeros(0, np.int64)
        order = np.argsort(first, kind="stable")
        self._first, self._second = first[order], self._second[order]
        self._owner, self._row = owner[order], row[order]

    def __len__(self) -> int:
        return len(self._first)

    @property
    def num_bytes(self) -> int:
        """Size on disk, everything included."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def __contains__(self, key: bytes) -> bool:
        return self._find(key) is not None

    def _find(self, key: bytes) -> tuple[int, int] | None:
        one, two = np.frombuffer(key, "<u8")
        place = int(np.searchsorted(self._first, one))
        while place < len(self._first) and self._first[place] == one:
            if self._second[place] == two:
                return int(self._owner[place]), int(self._row[place])
            place += 1
        return None

    def read(self, keys: Sequence[bytes]) -> tuple[NDArray[np.int32], NDArray[np.float32], list[int]]:
        """Ids `[N, K]` and probabilities `[N, K]` of all tokens of some blocks, in order, and tokens of each block.

        Raises:
            InputError: a block that the cache does not hold.
            CorruptionError: a block that is not what was written.
        """
        found = [self._find(key) for key in keys]
        if missing := sum(place is None for place in found):
            raise InputError(
                f"{self.folder}: has no targets for {missing} of {len(keys)} blocks; it was written from "
                f"{', '.join(sorted(self.settings.corpora)) or 'other text'} in blocks of "
                f"{self.settings.sequence_length} tokens. Write it for all domains that are taught (with every token "
                "and, for mlm, this mask seed), or teach the others by another teacher"
            )
        places = [place for place in found if place is not None]
        parts: list[tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]] = []
        position: list[tuple[int, int]] = [(0, 0)] * len(keys)
        for part, shard in enumerate(sorted({owner for owner, _ in places})):
            mine = [number for number, (owner, _) in enumerate(places) if owner == shard]
            parts.append(self._shards[shard].decode([places[number][1] for number in mine], self.scheme))
            for number, index in zip(mine, range(len(mine)), strict=True):
                position[number] = (part, index)
        return _in_order(parts, position)


def read_all(
    caches: Sequence[TargetCache], keys: Sequence[bytes]
) -> tuple[NDArray[np.int32], NDArray[np.float32], list[int]]:
    """As `TargetCache.read`, of blocks that lie in several caches.

    Raises:
        InputError: a block that none of them holds.
    """
    owners = [next((place for place, cache in enumerate(caches) if key in cache), 0) for key in keys]
    parts, position = [], [(0, 0)] * len(keys)
    for part, owner in enumerate(sorted(set(owners))):
        mine = [number for number, place in enumerate(owners) if place == owner]
        ids, probabilities, tokens = caches[owner].read([keys[number] for number in mine])
        parts.append((ids, probabilities, np.array(tokens)))
        for index, number in enumerate(mine):
            position[number] = (part, index)
    return _in_order(parts, position)


def _in_order(
    parts: Sequence[tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]],
    position: Sequence[tuple[int, int]],
) -> tuple[NDArray[np.int32], NDArray[np.float32], list[int]]:
    if len(parts) == 1:
        ids, probabilities, tokens = parts[0]
        return ids, probabilities, tokens.tolist()
    longest = max(ids.shape[1] for ids, _, _ in parts)
    counts = [int(parts[part][2][index]) for part, index in position]
    ids = np.full((sum(counts), longest), -1, np.int32)
    probabilities = np.zeros((sum(counts), longest), np.float32)
    starts = [np.cumsum(tokens) - tokens for _, _, tokens in parts]
    at = 0
    for (part, index), count in zip(position, counts, strict=True):
        start = int(starts[part][index])
        found_ids, found_probabilities, _ = parts[part]
        ids[at : at + count, : found_ids.shape[1]] = found_ids[start : start + count]
        probabilities[at : at + count, : found_ids.shape[1]] = found_probabilities[start : start + count]
        at += count
    return ids, probabilities, counts


class _Shard:
    """One Arrow file."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        if not path.is_file():
            raise CorruptionError(f"{path}: the shard is missing; write the cache again")
        if path.stat().st_size != size:
            raise CorruptionError(
                f"{path}: the shard is cut short or changed ({path.stat().st_size:,} bytes, {size:,} were written); "
                "write the cache again"
            )
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
            batch, metadata = reader.get_batch_with_custom_metadata(0)
        except (OSError, pa.ArrowInvalid) as error:
            raise CorruptionError(f"{path}: no readable shard of targets ({error}); write the cache again") from None
        facts = json.loads(metadata[b"lifelong"])
        kind = "<u2" if facts["settings"]["vocab_size"] <= 1 << 16 else "<u4"
        tokens = np.frombuffer(metadata[b"tokens"], kind).astype(np.uint32)
        widths = facts["widths"]
        self.book = Codebook(tokens, (widths[0], widths[1], widths[2], widths[3]))
        self._payloads, self._checks = batch.column("payload"), batch.column("check").to_numpy()
        key_bytes = batch.column("key").buffers()[1]
        self.keys: NDArray[np.uint64] = np.frombuffer(key_bytes, "<u8", 2 * batch.num_rows).reshape(-1, 2)

    def decode(
        self, rows: Sequence[int], scheme: Scheme
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
        """Entries of some blocks."""
        payloads = [self._payloads[row].as_buffer().to_pybytes() for row in rows]
        for row, payload in zip(rows, payloads, strict=True):
            if zlib.crc32(payload) != self._checks[row]:
                raise CorruptionError(f"{self.path}: block {row} differs from what was written; write the cache again")
        return decode(payloads, scheme, self.book)


def fill_cache(
    writer: CacheWriter,
    batches: Iterable[Mapping[str, Tensor]],
    probabilities: Callable[[Mapping[str, Tensor]], Iterable[Iterable[Tensor]]],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Sparsify and store what a teacher says of every batch that is not on disk yet, then mark it complete.

    The draws of a block are seeded by its key: a cache that was cut short and continued equals one that was not.

    Args:
        writer: of the cache.
        batches: all of them, from the first on.
        probabilities: for each row of a batch, those of its predicted tokens, `[n, V]` at a time.
        progress: told of blocks and tokens that are done.
    """
    skip = writer.blocks_done
    seen: set[bytes] = set()
    blocks = tokens = 0
    for batch in batches:
        keys = block_keys(batch)
        fresh = []
        for row, key in enumerate(keys):
            fresh.append(key not in seen and blocks + row >= skip)
            seen.add(key)
        if any(fresh):
            part = sequences(batch, np.flatnonzero(fresh))
            rows = iter(_by_block(writer, part, probabilities(part)))
        for row, key in enumerate(keys):
            if blocks + row >= skip:
                found = next(rows) if fresh[row] else None
                tokens += 0 if found is None else len(found.counts)
                writer.add(key, found)
        blocks += len(keys)
        progress(blocks, writer.tokens_done + writer._pending_tokens)
    writer.finish()


def _by_block(
    writer: CacheWriter, batch: Mapping[str, Tensor], blocks: Iterable[Iterable[Tensor]]
) -> Iterable[SparseRows]:
    for key, chunks in zip(block_keys(batch), blocks, strict=True):
        yield sparse_block(writer.scheme, key, chunks, writer.settings.seed)


def sparse_block(scheme: Scheme, key: bytes, chunks: Iterable[Tensor], seed: int = 0) -> SparseRows:
    """Sparse targets of one block, whose draws are seeded by its key; `chunks` as in `fill_cache`."""
    generator = np.random.default_rng([seed, int.from_bytes(key, "little")])
    return joined_rows([scheme.sparsify(chunk, generator) for chunk in chunks], scheme)


def joined_rows(parts: Sequence[SparseRows], scheme: Scheme) -> SparseRows:
    """Rows one behind the other."""
    if not parts:
        return SparseRows(*(np.zeros(0, kind) for kind in (np.int64, np.int64, np.bool_, scheme.code_type)))
    return SparseRows(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("counts", "ids", "coded", "codes"))
    )
