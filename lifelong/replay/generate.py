"""Self-generated memory: text that a model writes of itself, with the distribution of every token.

A stream begins with a document's start token, and with another one wherever the model has ended its text; so documents
see nothing of each other, as in training. Streams are long and are cut into blocks: samples of one block would all be
openings. A block whose documents begin in it keeps the context in which it was written, and its targets are those that
it was sampled from. Where a document goes on from the block before, a student will not see its beginning: targets with
that context would hold the student to what it cannot know, so that these blocks take one more pass.

Streams are written in rounds, each a function of the seed, its number and the settings alone: a round that a kill has
cut short is written again, in the same bits.

Sources: replay of a model's own samples: Sun et al. 2020 (LAMOL, arXiv 1909.03329); with its own distribution as
target: arXiv 2605.26097; the sparse targets: `inherit.sparse`.

Shape suffixes: B streams, L tokens of a stream, T tokens of a block, V vocabulary, C rows.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lifelong.errors import InputError
from lifelong.files import write_bytes
from lifelong.inherit.cache import block_keys, joined_rows, sparse_block
from lifelong.inherit.sparse import Scheme, SparseRows, take_rows
from lifelong.inherit.teachers.model import OnlineTeacher
from lifelong.inherit.write_cache import block_probabilities
from lifelong.lm.compat import cache_argument
from lifelong.lm.packed import packed_inputs, position_offset
from lifelong.replay.settings import GenerateSection
from lifelong.stream.blocks import Block
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import Domain
from lifelong.stream.collator import Collator, PackedRow
from lifelong.stream.ordering import key_of, uniforms
from lifelong.stream.tokenizers.encoding import Encoder

LONGEST_STREAM = 2048
"""Tokens of a stream where the recipe does not say: beyond that few streams share a batch, and few texts are begun."""
CACHE_BYTES = 1 << 30
MOST_STREAMS = 32
SPARSIFIED_BYTES = 1 << 25
PASS_TOKENS = 8192
START_DOCUMENTS = 512
MOST_UNKNOWN = 0.1
AGREEMENT = 1e-3

Tell = Callable[[int], None]


@dataclass(frozen=True)
class StreamShape:
    """How much is written: `blocks` in all, streams of `length` tokens, `batch_size` of them side by side."""

    blocks: int
    length: int
    batch_size: int
    sequence_length: int

    @property
    def streams(self) -> int:
        """Streams in all; of the last one blocks may be left over."""
        return -(-self.blocks * self.sequence_length // self.length)

    @property
    def rounds(self) -> int:
        """Batches of streams."""
        return -(-self.streams // self.batch_size)

    @property
    def tokens(self) -> int:
        """Tokens that are written."""
        return self.streams * self.length

    @property
    def cut_blocks(self) -> int:
        """Blocks that are not the first of their stream, and may go on from the one before."""
        return self.blocks - min(self.blocks, self.streams)


def stream_shape(section: GenerateSection, config: Any, sequence_length: int, generation: int = 0) -> StreamShape:
    """The streams that a model of this configuration writes.

    Args:
        section: of the recipe.
        config: of the model.
        sequence_length: tokens of a block.
        generation: how many models have written before, where what they wrote is kept.

    Raises:
        InputError: too few tokens for one block, or streams that do not fit the blocks or the model.
    """
    where, tokens = "replay.generate", section.tokens_of(generation)
    if tokens < sequence_length:
        share = (
            f"tokens: {section.tokens:,}, shared by {generation + 1} models, are"
            if generation
            else f"tokens: {tokens:,} is"
        )
        raise InputError(f"{where}.{share} too few for one block of sequence_length {sequence_length}")
    context = getattr(config, "max_position_embeddings", None) or LONGEST_STREAM
    if section.length is not None and not sequence_length <= section.length <= context:
        raise InputError(
            f"{where}.length: {section.length:,} must be between sequence_length {sequence_length} and the model's "
            f"{context:,} positions"
        )
    blocks = tokens // sequence_length
    length = section.length or min(context, LONGEST_STREAM)
    each = max(1, min(length // sequence_length, blocks))
    each = math.ceil(blocks / math.ceil(blocks / each))  # as long as each other, and nothing left over
    streams = math.ceil(blocks / each)
    room = CACHE_BYTES // max(1, each * sequence_length * cache_bytes(config))
    batch = section.batch_size or max(1, min(MOST_STREAMS, room))
    return StreamShape(blocks, each * sequence_length, min(batch, streams), sequence_length)


def cache_bytes(config: Any) -> int:
    """Bytes of keys and values of one token, in float32."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * 4 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * size)


@dataclass(frozen=True)
class Writing:
    """Everything that decides what is written, beside the model.

    Args:
        shape: of the streams.
        section: temperature and truncation of what is drawn from.
        seed: key of the draws.
        starts: how documents begin: a start token, or more behind it.
        end_ids: tokens behind which a new document begins.
        vocab_size: tokens of the tokenizer; what else the model has is padding and is not drawn.
        scheme: of the targets; None where nobody will ask for them.
        target_temperature: at which targets are taken, that of the loss.
    """

    shape: StreamShape
    section: GenerateSection
    seed: int
    starts: Sequence[NDArray[np.integer]]
    end_ids: frozenset[int]
    vocab_size: int
    scheme: Scheme | None = None
    target_temperature: float = 1.0

    def streams_of(self, number: int) -> range:
        """Numbers of the streams of a round."""
        first = number * self.shape.batch_size
        return range(first, min(first + self.shape.batch_size, self.shape.streams))


def start_ids(tokenizer: Any, section: GenerateSection, domain: Domain | None, sequence_length: int) -> list[Any]:
    """How documents begin, each with the start token in front.

    Raises:
        InputError: the first tokens of the card fill a block, are unknown to the tokenizer, or there are none.
    """
    encoder = Encoder(tokenizer)
    first = np.array([encoder.first_id], np.int32)
    if domain is None:
        return [first]
    where = f"replay.generate.start: {domain.name!r}"
    if section.start_tokens + 1 >= sequence_length:
        raise InputError(
            f"{where}: its first {section.start_tokens} tokens leave no room in a block of sequence_length "
            f"{sequence_length}; lower start_tokens"
        )
    found = []
    for document in read_documents(domain, "train"):
        (ids,) = encoder.encode_batch([encoder.rendered(document.text)[: 40 * section.start_tokens]])
        if len(ids) >= section.start_tokens:
            found.append(np.concatenate([first, ids[: section.start_tokens]]))
        if len(found) == START_DOCUMENTS:
            break
    if not found:
        raise InputError(f"{where}: no document has {section.start_tokens} tokens; lower start_tokens")
    unknown = (
        float(np.mean(np.concatenate(found) == tokenizer.unk_token_id)) if tokenizer.unk_token_id is not None else 0.0
    )
    if unknown > MOST_UNKNOWN:
        raise InputError(
            f"{where}: {unknown:.0%} of its first tokens are {tokenizer.unk_token!r}, the tokenizer cannot represent "
            f"this text (at most {MOST_UNKNOWN:.0%}); choose another card"
        )
    return found


def end_ids(tokenizer: Any, model: Any) -> frozenset[int]:
    """Tokens by which a text ends: those of tokenizer and model, and a start token that the model writes itself."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    encoder = Encoder(tokenizer)
    found = [*(own if isinstance(own, list) else [own]), encoder.first_id, encoder.last_id]
    return frozenset(int(token) for token in found if token is not None)


@dataclass(frozen=True)
class Round:
    """A batch of streams: `ids_BL`, `starts_BL` (a document begins), and the targets of all its blocks in order."""

    ids_BL: NDArray[np.int32]
    starts_BL: NDArray[np.bool_]
    targets: tuple[SparseRows, ...]
    seconds: float

    def blocks(self, sequence_length: int) -> Iterator[Block]:
        """The blocks, stream after stream."""
        for ids_L, starts_L in zip(self.ids_BL, self.starts_BL, strict=True):
            yield from stream_blocks(ids_L, starts_L, sequence_length)

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        rows = self.targets
        arrays: dict[str, Any] = {"ids": self.ids_BL, "starts": self.starts_BL, "seconds": np.float64(self.seconds)}
        if rows:
            arrays["sizes"] = np.array([len(part.counts) for part in rows])
            for name in ("counts", "ids", "coded", "codes"):
                arrays[f"target_{name}"] = np.concatenate([getattr(part, name) for part in rows])
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Round:
        """Inverse of `save`."""
        with np.load(path) as arrays:
            targets: tuple[SparseRows, ...] = ()
            if "sizes" in arrays:
                whole = SparseRows(*(arrays[f"target_{name}"] for name in ("counts", "ids", "coded", "codes")))
                ends = np.cumsum(arrays["sizes"])
                targets = tuple(
                    take_rows(whole, np.arange(end - size, end))
                    for end, size in zip(ends, arrays["sizes"], strict=True)
                )
            return cls(arrays["ids"], arrays["starts"], targets, float(arrays["seconds"]))


def stream_blocks(ids_L: NDArray[np.int32], starts_L: NDArray[np.bool_], sequence_length: int) -> Iterator[Block]:
    """A stream cut into blocks; a document that a cut goes through is a segment of its own behind it."""
    begun = 0
    for first in range(0, len(ids_L), sequence_length):
        starts = np.flatnonzero(starts_L[first : first + sequence_length]).astype(np.int32)
        offsets = np.zeros(len(starts), np.int32)
        if not starts_L[first]:
            starts = np.concatenate([np.zeros(1, np.int32), starts])
            offsets = np.concatenate([np.array([first - begun], np.int32), offsets])
        yield Block(ids_L[first : first + sequence_length], starts, offsets)
        if starts_L[first : first + sequence_length].any():
            begun = first + int(starts[-1])


class _Stepper:
    """A model that reads one token of every stream at a time; a document sees nothing of those before it."""

    def __init__(self, model: Any, streams: int, length: int) -> None:
        self.model, self.device = model, model.get_input_embeddings().weight.device
        self.offset, self.named = position_offset(model), cache_argument(model)
        self.seen_BL = torch.ones(streams, length, dtype=torch.long, device=self.device)
        self.place_B = np.full(streams, -1)
        self.read, self.restarted = 0, False
        self.cache: Any = None

    def step(self, ids_B: NDArray[np.integer], starts_B: NDArray[np.bool_]) -> Tensor:
        """Logits `[B, V]` of what comes after these tokens."""
        self.place_B = np.where(starts_B, 0, self.place_B + 1)
        if self.read and starts_B.any():
            self.seen_BL[torch.from_numpy(np.flatnonzero(starts_B)).to(self.device), : self.read] = 0
            self.restarted = True
        self.read += 1
        output = self.model(
            input_ids=torch.from_numpy(ids_B.astype(np.int64)).to(self.device)[:, None],
            position_ids=torch.from_numpy(self.place_B + self.offset).to(self.device)[:, None],
            attention_mask=self.seen_BL[:, : self.read] if self.restarted else None,
            use_cache=True,
            **{self.named: self.cache},
        )
        self.cache = output[self.named]
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


@contextlib.contextmanager
def frozen(model: Any) -> Iterator[None]:
    """In evaluation mode and without gradients; afterwards as before."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)


def check_writer(model: Any) -> None:
    """A model that reads token by token, with restarts, must compute what it computes on packed documents.

    Raises:
        InputError: it does not, or does not keep documents apart at all.
    """
    vocab = model.config.vocab_size
    ids_BT = np.arange(3, 19).reshape(2, 8) * 5 % vocab
    starts_BT = np.zeros((2, 8), np.bool_)
    starts_BT[:, 0] = starts_BT[0, 4] = True
    segments_BT = starts_BT.cumsum(1)
    places_BT = np.stack([np.concatenate([np.arange(4), np.arange(4)]), np.arange(8)])
    with frozen(model):
        stepper = _Stepper(model, 2, 8)
        written_BTV = torch.stack([stepper.step(ids_BT[:, t], starts_BT[:, t]) for t in range(8)], 1).float()
        batch = {
            name: torch.from_numpy(value).to(written_BTV.device)
            for name, value in (("input_ids", ids_BT), ("position_ids", places_BT), ("segment_ids", segments_BT))
        }
        packed_BTV = model(**packed_inputs(model, batch, "clm")).logits.float()
    difference = float((written_BTV - packed_BTV).abs().max())
    if not difference <= AGREEMENT * max(1.0, float(packed_BTV.abs().max())):
        raise InputError(
            f"replay.generate: {type(model).__name__} computes something else token by token than on whole rows "
            f"(logits differ by {difference:.1e}), so that what it writes would not be its own; replay kept or public "
            "text instead"
        )


def write_round(model: Any, writing: Writing, number: int, collator: Collator, tell: Tell = lambda _: None) -> Round:
    """Write the streams of a round, with the targets of their blocks where the settings ask for them.

    Args:
        model: a causal model; left as it was.
        writing: settings.
        number: of the round.
        collator: of the run.
        tell: told of tokens as they are written, now and then.
    """
    started = time.monotonic()
    with frozen(model):
        ids_BL, starts_BL, kept = _sample(model, writing, number, tell)
        made = Round(ids_BL, starts_BL, (), 0.0)
        targets = () if writing.scheme is None else tuple(_all_targets(model, writing, made, kept, collator))
    return Round(ids_BL, starts_BL, targets, time.monotonic() - started)


def _sample(
    model: Any, writing: Writing, number: int, tell: Tell
) -> tuple[NDArray[np.int32], NDArray[np.bool_], SparseRows | None]:
    """Tokens, starts of documents, and targets of the first blocks: row (t - 1) B + b predicts token t of stream b."""
    streams, length = writing.streams_of(number), writing.shape.length
    size = len(streams)
    ids_BL, starts_BL = np.zeros((size, length), np.int32), np.zeros((size, length), np.bool_)
    draws_BL = np.stack([uniforms(key_of(writing.seed, "stream", stream), length) for stream in streams])
    stepper, kept = _Stepper(model, size, length), _Kept(writing, key_of(writing.seed, "targets", number))
    waiting: list[NDArray[np.integer]] = [np.zeros(0, np.int32)] * size  # the rest of a document's beginning
    documents = [0] * size
    next_B, told = np.zeros(size, np.int64), 0
    for t in range(length):
        for b, stream in enumerate(streams):
            if t == 0 or (not len(waiting[b]) and not starts_BL[b, t - 1] and int(ids_BL[b, t - 1]) in writing.end_ids):
                which = key_of(writing.seed, "start", stream, documents[b]) % len(writing.starts)
                waiting[b], starts_BL[b, t] = writing.starts[which], True
                documents[b] += 1
            if len(waiting[b]):
                next_B[b], waiting[b] = waiting[b][0], waiting[b][1:]
        ids_BL[:, t] = next_B
        if t + 1 == length:
            break
        logits_BV = stepper.step(next_B, starts_BL[:, t])[:, : writing.vocab_size]
        logits_BV = logits_BV if logits_BV.dtype == torch.float64 else logits_BV.float()
        probabilities_BV = (logits_BV / writing.section.temperature).softmax(1)
        if writing.scheme is not None and t + 1 < writing.shape.sequence_length:
            same = writing.target_temperature == writing.section.temperature
            kept.add(probabilities_BV if same else (logits_BV / writing.target_temperature).softmax(1))
        next_B = _drawn(_truncated(probabilities_BV, writing.section), draws_BL[:, t + 1])
        if (t + 1) % 16 == 0:
            tell((t + 1 - told) * size)
            told = t + 1
    tell((length - told) * size)
    return ids_BL, starts_BL, kept.rows()


class _Kept:
    """Distributions on their way to sparse targets, many rows at a time."""

    def __init__(self, writing: Writing, key: int) -> None:
        self.scheme, self.generator = writing.scheme, np.random.default_rng(key)
        self.dense: list[Tensor] = []
        self.sparse: list[SparseRows] = []

    def add(self, probabilities_BV: Tensor) -> None:
        """Rows that come next."""
        self.dense.append(probabilities_BV)
        if sum(part.numel() for part in self.dense) * 4 >= SPARSIFIED_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self.dense and self.scheme is not None:
            self.sparse.append(self.scheme.sparsify(torch.cat(self.dense), self.generator))
        self.dense = []

    def rows(self) -> SparseRows | None:
        """All of them; None where nothing is kept."""
        self._flush()
        return None if self.scheme is None else joined_rows(self.sparse, self.scheme)


def _truncated(probabilities_BV: Tensor, section: GenerateSection) -> Tensor:
    """Only the most probable tokens, where a recipe says so; not scaled to sum to one."""
    if section.top_k is None and section.top_p is None:
        return probabilities_BV
    sorted_BV, order_BV = probabilities_BV.sort(1, descending=True)
    keep_BV = torch.ones_like(sorted_BV, dtype=torch.bool)
    if section.top_k is not None:
        keep_BV[:, section.top_k :] = False
    if section.top_p is not None:
        keep_BV &= sorted_BV.cumsum(1) - sorted_BV < section.top_p
    return torch.zeros_like(sorted_BV).scatter(1, order_BV, sorted_BV * keep_BV)


def _drawn(weights_BV: Tensor, draws_B: NDArray[np.float64]) -> NDArray[np.int64]:
    """Tokens by inverse cumulated weights, in float64: one of probability zero is never drawn."""
    cumulated_BV = weights_BV.double().cumsum(1)
    marks_B = torch.from_numpy(draws_B).to(cumulated_BV.device) * cumulated_BV[:, -1]
    drawn: NDArray[np.int64] = torch.searchsorted(cumulated_BV, marks_B[:, None], right=True).squeeze(1).cpu().numpy()
    return np.minimum(drawn, weights_BV.shape[1] - 1)


def _all_targets(
    model: Any, writing: Writing, made: Round, kept: SparseRows | None, collator: Collator
) -> Iterator[SparseRows]:
    """Targets of all blocks of a round: as they were sampled where a block is the first of its stream."""
    assert writing.scheme is not None, "asked for only with a scheme"
    assert kept is not None, "asked for only with a scheme"
    length, size = writing.shape.sequence_length, len(made.ids_BL)
    each = writing.shape.length // length
    blocks = list(made.blocks(length))
    cut = [block for number, block in enumerate(blocks) if number % each]
    passed = targets_of(model, cut, writing.scheme, collator, writing.vocab_size, writing.target_temperature)
    for number in range(len(blocks)):
        stream, place = divmod(number, each)
        if place:
            yield next(passed)
        else:
            predicted = 1 + np.flatnonzero(~made.starts_BL[stream, 1:length])
            yield take_rows(kept, (predicted - 1) * size + stream)


def targets_of(
    model: Any, blocks: Sequence[Block], scheme: Scheme, collator: Collator, vocab_size: int, temperature: float
) -> Iterator[SparseRows]:
    """Sparse targets of blocks by one forward pass; their draws are seeded by the blocks."""
    teacher = OnlineTeacher(model, "clm", vocab_size=vocab_size)
    size = max(1, PASS_TOKENS // collator.sequence_length)
    device = model.get_input_embeddings().weight.device
    for first in range(0, len(blocks), size):
        rows = [
            PackedRow(block=block, domain_id=0, is_replay=True, mask_key=0) for block in blocks[first : first + size]
        ]
        batch = {name: value.to(device) for name, value in collator(rows).items()}
        for key, chunks in zip(block_keys(batch), block_probabilities(teacher, batch, temperature), strict=True):
            yield sparse_block(scheme, key, chunks)
