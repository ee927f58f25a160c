"""A large corpus as token shards, made as training comes to them: no more is read than the budget needs.

The pieces of the corpus come in a random order, are tokenised one by one ahead of training, and blocks are shuffled
within a window of several pieces, which begins with one so that the first step does not wait. All of it is a pure
function of the seed, the stage, the epoch and the text. Shards lie in a cache outside of the run, where later stages
and other runs find them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lifelong.errors import CorruptionError, InputError
from lifelong.files import read_sealed
from lifelong.stream.blocks import Block, BlockStore
from lifelong.stream.cards.document import Document
from lifelong.stream.cards.documents import Tally, read_piece
from lifelong.stream.cards.domain import Domain
from lifelong.stream.cards.pieces import PIECE_BYTES, Pieces
from lifelong.stream.ordering import key_of, permuted
from lifelong.stream.shard_cache import cache_limit, prune_shards, shards_folder
from lifelong.stream.tokenize import block_settings, manifest_of, settings_hash, write_once
from lifelong.stream.tokenizers.encoding import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHOLE_BYTES = 8_000_000
"""A corpus up to this size is tokenised whole and shuffled as a whole; it takes some seconds."""
WINDOWS = (1, 1, 2, 4, 8, 16)
"""Pieces of the windows of an epoch; the last number holds on."""
# the last block of a piece is shorter than the others: with this many blocks a piece it is one of many
_BLOCKS_A_PIECE = 128
_BYTES_A_TOKEN = 4
_OPEN_SHARDS = 64
_PRUNE_EVERY = 500


class ShardedCorpus:
    """Blocks of the pieces of a corpus; as a sequence, those that are planned to be read, in the order of reading.

    Args:
        domain: the card.
        tokenizer: of the run.
        pieces: of its training text.
        sequence_length: tokens of a block.
        num_blocks: that are planned to be read; training may go on beyond them.
        seed: of the order.
        stage: position in the stream.
        cache_dir: where shards are kept.
        tell: is told where the cache was damaged.
        read: is told how many bytes of which domain have been tokenised.
    """

    def __init__(
        self,
        domain: Domain,
        tokenizer: PreTrainedTokenizerBase,
        pieces: Pieces,
        *,
        sequence_length: int,
        num_blocks: int,
        seed: int,
        stage: int,
        cache_dir: Path | None = None,
        tell: Callable[[str], None] = lambda _: None,
        read: Callable[[str, int], None] | None = None,
    ) -> None:
        self.domain, self.tokenizer, self.pieces = domain, tokenizer, pieces
        self.sequence_length, self.num_blocks, self.seed, self.stage = sequence_length, num_blocks, seed, stage
        self.cache_dir, self._made = shards_folder(cache_dir), 0
        self._tell, self._read = tell, read
        self._bytes_read = 0
        self._epochs: dict[int, _Epoch] = {}
        self._stores: OrderedDict[int, BlockStore] = OrderedDict()
        self._ahead: dict[int, Future[Path]] = {}
        self._owner = os.getpid()
        self._executor: ThreadPoolExecutor | None = None

    @classmethod
    def of(
        cls, domain: Domain, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, **settings: Any
    ) -> ShardedCorpus | None:
        """The corpus in shards, or None where it is small or can be read in no other order than its own."""
        pieces = pieces_of(domain, sequence_length)
        return None if pieces is None else cls(domain, tokenizer, pieces, sequence_length=sequence_length, **settings)

    @cached_property
    def encoder(self) -> Encoder:
        """Of the tokenizer."""
        return Encoder(self.tokenizer)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What decides the blocks of every piece; to hash a tokenizer for each would take longer than to read it."""
        return block_settings(self.domain, self.encoder, self.sequence_length, "")

    def begin(self) -> None:
        """Make the first window, and tell of it; of what is made later training tells.

        Raises:
            InputError: the text holds no document, or one that cannot be read; $LIFELONG_CACHE_LIMIT is no size.
        """
        prune_shards(self.cache_dir, cache_limit())
        self._epoch(0).reaches(0)
        self._read = None

    def drawn(self, cursor: int) -> tuple[int, int]:
        """Epoch and row of the `cursor`-th block that is trained on, from 0.

        Raises:
            InputError: the text holds no document.
        """
        number = 0
        while not (epoch := self._epoch(number)).reaches(cursor):
            cursor -= epoch.total
            number += 1
        return number, epoch.row(cursor)

    def __len__(self) -> int:
        """Blocks of the windows that hold what is planned."""
        first = self._epoch(0)
        last = self.num_blocks - 1 if first.reaches(self.num_blocks - 1) else first.total - 1
        return first.window_of(last)[2]

    def __getitem__(self, row: int) -> Block:
        first = self._epoch(0)
        if row < 0 or not first.reaches(row):
            raise IndexError(f"block {row} of {self.domain.name}")
        place = bisect_right(first.ends, row)
        block: Block = self._store(first.piece(place))[row - first.rows_before(place)]
        return block

    def row_of(self, piece: int, block: int) -> int:
        """Row of a block of a piece that the first epoch has reached."""
        first = self._epoch(0)
        return first.rows_before(first.place_of[piece]) + block

    def _planned(self) -> list[BlockStore]:
        first, length = self._epoch(0), len(self)
        return [self._store(first.piece(place)) for place in range(bisect_left(first.ends, length) + 1)]

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each block."""
        return np.concatenate([store.lengths() for store in self._planned()])

    @property
    def num_tokens(self) -> int:
        """Tokens of all blocks."""
        return int(self.lengths().sum())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is planned to be read, wherever it lies: content of the shards, tokenizer and settings."""
        content = [manifest_of(store)["blocks_sha256"] for store in self._planned()]
        return settings_hash({**self._settings, "source": content})

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            self._epochs[number] = _Epoch(self, key_of(self.seed, "pieces", self.stage, number))
        return self._epochs[number]

    def blocks_of(self, piece: int) -> int:
        """Blocks of a piece, which is tokenised where it never was."""
        try:
            return int(read_sealed(self._folder(piece)[0] / "manifest.json")["blocks"])
        except (CorruptionError, KeyError):
            return len(self._store(piece))

    def _store(self, piece: int) -> BlockStore:
        if piece in self._stores:
            self._stores.move_to_end(piece)
            return self._stores[piece]
        made = self._ahead.pop(piece, None) if os.getpid() == self._owner else None
        folder = made.result() if made is not None else self._shard(piece, self._read)
        try:
            self._stores[piece] = BlockStore(folder / "blocks.arrow")
        except CorruptionError:  # pruned in between, by this process or another one
            self._stores[piece] = BlockStore(self._shard(piece) / "blocks.arrow")
        while len(self._stores) > _OPEN_SHARDS:
            self._stores.popitem(last=False)
        return self._stores[piece]

    def make_ahead(self, pieces: Iterable[int]) -> None:
        """Make shards while training goes on; loaders of several processes make them in theirs."""
        if os.getpid() != self._owner:
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        for piece in pieces:
            if piece not in self._ahead and piece not in self._stores:
                self._ahead[piece] = self._executor.submit(self._shard, piece)

    def close(self) -> None:
        """Make no more shards ahead."""
        if self._executor is not None and os.getpid() == self._owner:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None
            self._ahead.clear()

    def _folder(self, number: int) -> tuple[Path, dict[str, Any]]:
        """Of a piece's blocks, and what decides them."""
        source = settings_hash({"piece": self.pieces.key(number), "options": self.domain.options})
        settings = {**self._settings, "source": source}
        name = settings_hash(settings)
        return self.cache_dir / name[:2] / name[:32], settings

    def _shard(self, number: int, read: Callable[[str, int], None] | None = None) -> Path:
        """Folder of a piece's blocks, made where it is not there; one process at a time makes it."""
        folder, settings = self._folder(number)

        def documents(tally: Tally) -> Iterator[Document]:
            yield from read_piece(self.domain, self.pieces[number], tally)
            self._bytes_read += tally.bytes
            if read is not None:
                read(self.domain.name, self._bytes_read)

        self._made += 1
        if self._made % _PRUNE_EVERY == 0:
            prune_shards(self.cache_dir, cache_limit())
        try:
            with _alone(folder):
                facts = {"domain": self.domain.name, "split": "train"}
                write_once(folder, documents, self.encoder, settings, facts=facts, tell=self._tell)
                os.utime(folder)  # when it was last of use: what is oldest goes first
        except OSError as error:
            error.filename = error.filename or str(self.cache_dir)  # not the disk of the run, which is suspected
            raise
        return folder

    def __getstate__(self) -> dict[str, Any]:
        # loaders that are started anew have no callbacks and no threads of another process
        kept = {name: value for name, value in self.__dict__.items() if name != "encoder"}
        return {**kept, "_ahead": {}, "_executor": None, "_read": None, "_tell": _silent, "_owner": -1}


def _silent(said: str) -> None:
    del said


class _Epoch:
    """The pieces in the order of one epoch, and how many blocks they hold, as far as they have been made."""

    def __init__(self, corpus: ShardedCorpus, key: int) -> None:
        self.corpus, self.key = corpus, key
        self.ends: list[int] = []
        """Blocks of the first n pieces."""
        self.window_ends: list[int] = []
        """Blocks of the first n windows."""
        self.place_of: dict[int, int] = {}

    def piece(self, place: int) -> int:
        """Number of the piece that comes at a place."""
        return permuted(place, len(self.corpus.pieces), self.key)

    @property
    def total(self) -> int:
        """Blocks of all pieces that have been made."""
        return self.ends[-1] if self.ends else 0

    def rows_before(self, place: int) -> int:
        """Blocks of the pieces before one."""
        return self.ends[place - 1] if place else 0

    def reaches(self, cursor: int) -> bool:
        """Whether the epoch has so many blocks; windows are made until that is known.

        Raises:
            InputError: it has none at all.
        """
        while self.total <= cursor and len(self.ends) < len(self.corpus.pieces):
            self._make_window()
        if not self.total:
            raise InputError(f"domain {self.corpus.domain.name}: the train split holds no document")
        return cursor < self.total

    def window_of(self, cursor: int) -> tuple[int, int, int]:
        """Number of the window that a block is in, and the blocks at its beginning and end."""
        number = bisect_right(self.window_ends, cursor)
        return number, self.window_ends[number - 1] if number else 0, self.window_ends[number]

    def row(self, cursor: int) -> int:
        """Row of the corpus that comes at a place of the epoch: shuffled within its window."""
        number, begin, end = self.window_of(cursor)
        place = begin + permuted(cursor - begin, end - begin, key_of(self.key, "window", number))
        at = bisect_right(self.ends, place)
        return self.corpus.row_of(self.piece(at), place - self.rows_before(at))

    def _make_window(self) -> None:
        number, first, last = len(self.window_ends), len(self.ends), len(self.corpus.pieces)
        after = min(last, first + window_pieces(number))
        for place in range(first, after):
            piece = self.piece(place)
            self.place_of[piece] = place
            self.ends.append(self.total + self.corpus.blocks_of(piece))
        self.window_ends.append(self.total)
        if self.total < self.corpus.num_blocks:
            following = range(after, min(last, after + window_pieces(number + 1)))
            self.corpus.make_ahead(self.piece(place) for place in following)


def window_pieces(number: int) -> int:
    """Pieces of the n-th window of an epoch."""
    return WINDOWS[min(number, len(WINDOWS) - 1)]


def pieces_of(domain: Domain, sequence_length: int) -> Pieces | None:
    """Pieces of the training text; None where it is small, or has to be read from its beginning."""
    if domain.dedup != "none" or domain.take_bytes is not None:
        return None  # both are about all of the text that comes before
    files = domain.source.files_of(domain)
    if files is None:
        return None
    pieces = Pieces(files, max(PIECE_BYTES, _BLOCKS_A_PIECE * _BYTES_A_TOKEN * sequence_length))
    return pieces if len(pieces) > 1 and pieces.num_bytes > WHOLE_BYTES else None


def pieces_read(needed: float, total: int) -> int:
    """Pieces of the windows that hold as many as are needed."""
    read = number = 0
    while read < min(needed, total):
        read, number = read + window_pieces(number), number + 1
    return min(read, total)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a shard; the kernel takes it back when its owner dies."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}-lock").open("wb") as file:
        with contextlib.suppress(OSError):  # a file system without locks: the work is done twice, with one result
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # a loader that was forked in between has the file open for ever


def drawn(corpus: Any, cursor: int, key: Callable[[int], int]) -> tuple[int, int]:
    """Epoch and row of the `cursor`-th block of a corpus, whole ones in a fresh permutation for each epoch.

    Args:
        corpus: blocks.
        cursor: from 0.
        key: of an epoch.
    """
    if isinstance(corpus, ShardedCorpus):
        return corpus.drawn(cursor)
    epoch, place = divmod(cursor, len(corpus))
    return epoch, permuted(place, len(corpus), key(epoch))


def has_blocks(corpus: Any) -> bool:
    """Whether there is anything to train on, found out without counting it."""
    return any(isinstance(part, ShardedCorpus) or len(part) > 0 for part in getattr(corpus, "corpora", [corpus]))


def close(corpus: Any) -> None:
    """Make no more shards ahead, of one corpus or of several together."""
    for part in getattr(corpus, "corpora", [corpus]):
        if isinstance(part, ShardedCorpus):
            part.close()
