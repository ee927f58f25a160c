"""Sparse rows as bytes: ids by rank of use, sorted, their differences in one of four widths.

The entries of a token are sorted by rank, so that differences are small; each difference takes two bits that
name a width and that many bits. The widths are chosen for what is to be stored. Everything is decoded in a few
passes over all entries of many blocks at once.

Shape suffixes: N tokens, K entries of the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifelong.errors import CorruptionError
from lifelong.inherit.sparse import Scheme, SparseRows

_HEAD = np.dtype([("tokens", "<u4"), ("entries", "<u4"), ("coded", "<u4")])
_PAD = b"\0" * 8
# four two-bit fields of a byte
_PAIRS = ((np.arange(256)[:, None] >> (2 * np.arange(4))) & 3).astype(np.uint8)


@dataclass(frozen=True)
class Codebook:
    """Tokens by how often they are used, and the four widths in bits."""

    tokens: NDArray[np.uint32]
    widths: tuple[int, int, int, int]

    @classmethod
    def for_rows(cls, parts: Sequence[SparseRows], vocab_size: int) -> Codebook:
        """The best codebook for these rows."""
        used = np.zeros(vocab_size, np.int64)
        for part in parts:
            used += np.bincount(part.ids, minlength=vocab_size)
        tokens = np.argsort(-used, kind="stable")[: max(1, int((used > 0).sum()))].astype(np.uint32)
        book = cls(tokens, (1, 2, 3, 24))
        lengths = np.zeros(25, np.int64)
        for part in parts:
            lengths += np.bincount(_bit_lengths(book.differences(part)[0]), minlength=25)
        return cls(tokens, _best_widths(lengths))

    def differences(self, rows: SparseRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Differences of sorted ranks less one (the first of a row: its rank), and the order that sorts."""
        ranks = np.zeros(int(self.tokens.max()) + 1, np.int64)
        ranks[self.tokens] = np.arange(len(self.tokens))
        rank = ranks[rows.ids]
        owner = np.repeat(np.arange(len(rows.counts)), rows.counts)
        order = np.lexsort((rank, owner))
        rank = rank[order]
        steps = np.diff(rank, prepend=-1) - 1
        starts = (np.cumsum(rows.counts) - rows.counts)[rows.counts > 0]
        steps[starts] = rank[starts]
        return steps, order


def _bit_lengths(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.ceil(np.log2(values.astype(np.float64) + 1)).astype(np.int64)


def _best_widths(lengths: NDArray[np.int64]) -> tuple[int, int, int, int]:
    """Widths that store values of these bit lengths in the fewest bits."""
    longest = int(np.flatnonzero(lengths).max(initial=0))
    below = np.concatenate([[0], np.cumsum(lengths)])

    def bits(widths: tuple[int, ...]) -> int:
        edges = [0, *(width + 1 for width in widths)]
        return sum(
            int(below[high] - below[low]) * width
            for low, high, width in zip(edges[:-1], edges[1:], widths, strict=True)
        )

    if longest < 4:
        return (0, 1, 2, 3)
    best = min(combinations(range(longest), 3), key=lambda three: bits((*three, longest)))
    return (best[0], best[1], best[2], longest)


def encode(rows: SparseRows, scheme: Scheme, book: Codebook) -> bytes:
    """One block: head, counts, coded marks, width classes, codes, differences."""
    steps, order = book.differences(rows)
    assert not len(steps) or int(steps.min()) >= 0, "a token comes once in a row"
    places = np.cumsum(rows.coded) - 1
    coded = rows.coded[order]
    codes = rows.codes[places[order][coded]]
    classes = np.searchsorted(book.widths, _bit_lengths(steps))
    widths = np.array(book.widths)[classes]
    ends = np.cumsum(widths)
    within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - widths, widths)
    head = np.array([(len(rows.counts), len(steps), len(codes))], _HEAD)
    padded = np.zeros(-(-len(classes) // 4) * 4, np.uint8)
    padded[: len(classes)] = classes
    return b"".join([
        head.tobytes(),
        rows.counts.astype(np.uint8).tobytes(),
        b"" if scheme.unit == 0 else np.packbits(coded, bitorder="little").tobytes(),
        (padded.reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8)).sum(1).astype(np.uint8).tobytes(),
        codes.astype(scheme.code_type).tobytes(),
        np.packbits((np.repeat(steps, widths) >> within) & 1, bitorder="little").tobytes(),
    ])  # fmt: skip


def decode(
    payloads: Sequence[bytes], scheme: Scheme, book: Codebook
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
    """Ids `[N, K]` (-1 where empty) and probabilities `[N, K]` of all blocks' tokens, and tokens of each block.

    Raises:
        CorruptionError: bytes that are no block.
    """
    pieces = [_sections(payload, scheme) for payload in payloads]
    tokens = np.array([len(piece.counts) for piece in pieces])
    counts = np.concatenate([piece.counts for piece in pieces])
    classes = np.concatenate([piece.classes for piece in pieces])
    widths = np.array(book.widths, np.int32)[classes]
    ends = np.cumsum(widths, dtype=np.int64)
    data, shift = [], np.zeros(len(pieces), np.int64)
    base = entries = 0
    for number, piece in enumerate(pieces):
        shift[number] = base * 8 - (int(ends[entries - 1]) if entries else 0)
        data.append(piece.bits)
        base += len(piece.bits)
        entries += len(piece.classes)
    if len(pieces) > 1:
        ends += np.repeat(shift, [len(piece.classes) for piece in pieces])
    ends -= widths
    buffer = b"".join([*data, _PAD])
    words: NDArray[Any] = np.ndarray((len(buffer) - 7,), "<u4", buffer, strides=(1,))
    steps = words[ends >> 3] >> (ends & 7).astype(np.uint32)
    steps &= np.array([(1 << width) - 1 for width in book.widths], np.uint32)[classes]
    longest = int(counts.max(initial=0))
    filled = np.arange(longest, dtype=np.uint8) < counts[:, None]
    ranks = np.zeros(filled.shape, np.int32)
    ranks[filled] = steps
    ranks += 1
    np.cumsum(ranks, axis=1, out=ranks)
    ranks -= 1
    known = book.tokens.astype(np.int32)
    if int(ranks[filled].max(initial=0)) >= len(known):
        raise CorruptionError("a block of cached targets names a token that its codebook does not have")
    ids = np.full(filled.shape, -1, np.int32)
    ids[filled] = known[ranks[filled]]
    flat = np.full(len(steps), scheme.unit, np.float32)
    coded = np.concatenate([piece.coded for piece in pieces])
    flat[coded] = scheme.values(np.concatenate([piece.codes for piece in pieces]))
    probabilities = np.zeros(filled.shape, np.float32)
    probabilities[filled] = flat
    return ids, probabilities, tokens


@dataclass(frozen=True)
class _Sections:
    counts: NDArray[np.uint8]
    coded: NDArray[np.bool_]
    classes: NDArray[np.uint8]
    codes: NDArray[Any]
    bits: bytes


def _sections(payload: bytes, scheme: Scheme) -> _Sections:
    head = np.frombuffer(payload, _HEAD, 1)[0]
    tokens, entries, num_codes = int(head["tokens"]), int(head["entries"]), int(head["coded"])
    at = _HEAD.itemsize
    counts = np.frombuffer(payload, np.uint8, tokens, at)
    at += tokens
    if scheme.unit == 0:
        coded = np.ones(entries, np.bool_)
    else:
        size = -(-entries // 8)
        marks = np.frombuffer(payload, np.uint8, size, at)
        coded = np.unpackbits(marks, count=entries, bitorder="little").view(np.bool_)
        at += size
    size = -(-entries // 4)
    classes = _PAIRS[np.frombuffer(payload, np.uint8, size, at)].reshape(-1)[:entries]
    at += size
    codes = np.frombuffer(payload, scheme.code_type, num_codes, at)
    at += codes.nbytes
    return _Sections(counts, coded, classes, codes, payload[at:])
