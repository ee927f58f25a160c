"""Corpus statistics for a plan: size, tokens per word, and whether held-out text is in it.

Only text that is here is looked at, and only its beginning; a hub data set is left alone.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lifelong.errors import LifelongError
from lifelong.recipe.recipe import Recipe
from lifelong.stream.cards.document import Document
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import Domain, load_domain
from lifelong.stream.cards.overlap import DuplicateFilter
from lifelong.stream.shards import pieces_of, pieces_read
from lifelong.stream.tokenize import train_tokenizer
from lifelong.stream.tokenizers.encoding import Encoder
from lifelong.stream.tokenizers.load import load_tokenizer

READ_BYTES = 4_000_000
ENCODED_BYTES = 300_000
HELDOUT_BYTES = 250_000
COMPARED_BYTES = 1_000_000
STAND_IN_BYTES = 2_000_000
FERTILITY_RISE = 1.3


@dataclass(frozen=True)
class CorpusStats:
    """Statistics of a domain; None where unknown.

    Args:
        name: of the domain.
        text_bytes: of the training split; an estimate by the size of the files where not all was read.
        documents: likewise.
        bytes_per_token: by the run's tokenizer, on the beginning.
        tokens_per_word: likewise, words being separated by white space.
        heldout_tokens: of the held-out split.
        complete: whether all of the training split was read.
        read_bytes: of text that the run will read; less than there is where it is read in pieces.
        encoding_seconds: that the tokenizer takes for a byte on this machine.
    """

    name: str
    text_bytes: float
    documents: float
    bytes_per_token: float | None
    tokens_per_word: float | None
    heldout_tokens: float | None
    complete: bool
    read_bytes: float = 0.0
    encoding_seconds: float = 0.0

    @property
    def read_tokens(self) -> float | None:
        """Tokens that the run will make of it."""
        return None if self.tokens is None else self.tokens * self.read_bytes / max(1.0, self.text_bytes)

    @property
    def tokens(self) -> float | None:
        """Tokens of the training split."""
        return None if self.bytes_per_token is None else self.text_bytes / self.bytes_per_token + 2 * self.documents


@dataclass(frozen=True)
class CorpusSample:
    """Facts by card, warnings, and the cards that could not be looked at with the reason."""

    facts: Mapping[str, CorpusStats]
    warnings: tuple[str, ...]
    unread: Mapping[str, str]
    vocab_size: int | None = None


def sample_corpora(recipe: Recipe) -> CorpusSample:
    """Read the beginning of every domain of a recipe that is here."""
    domains, unread = _readable(recipe)
    tokenizer, reason = _tokenizer(recipe, domains)
    facts: dict[str, CorpusStats] = {}
    read: dict[str, list[Document]] = {}
    encoder = Encoder(tokenizer) if tokenizer is not None else None
    for card, domain in domains.items():
        if (held := _try_beginning(domain, recipe.evaluate.split, unread, card)) and (
            train := _try_beginning(domain, "train", unread, card)
        ):
            read[card] = train
            facts[card] = _facts(recipe, card, domain, train, held, encoder)
    if reason:
        unread["tokenizer"] = reason
    stages = list(dict.fromkeys(stage.domain for stage in recipe.stages))
    warnings = [*_fertility(stages, facts), *_overlaps(recipe, stages, domains, read)]
    return CorpusSample(facts, tuple(warnings), unread, len(tokenizer) if tokenizer is not None else None)


def _readable(recipe: Recipe) -> tuple[dict[str, Domain], dict[str, str]]:
    found: dict[str, Domain] = {}
    unread: dict[str, str] = {}
    for card in dict.fromkeys(name for stage in recipe.stages for name in stage.cards):
        domain = load_domain(card)
        if domain.source.remote:
            unread[card] = domain.source.remote
        else:
            found[card] = domain
    return found, unread


def _tokenizer(recipe: Recipe, domains: Mapping[str, Domain]) -> tuple[Any, str]:
    """The run's tokenizer, or one of its kind from less text where it is still to be trained."""
    section = recipe.tokenizer
    try:
        if section is None or section.train is None:
            source = section.checkpoint if section is not None else recipe.model.checkpoint
            return load_tokenizer(str(source), revision=recipe.revision_of(source)), ""
        if not domains:
            return None, "needs text for training that is not on this machine"
        size = min(section.train.max_bytes, STAND_IN_BYTES)
        return train_tokenizer(
            list(domains.values()), vocab_size=section.train.vocab_size, seed=recipe.seed, max_bytes=size
        ), ""
    except LifelongError as error:
        return None, str(error)


def _beginning(domain: Domain, split: str, limit: int) -> list[Document]:
    size, documents = 0, []
    for document in read_documents(domain, split):
        documents.append(document)
        size += document.num_bytes
        if size >= limit:
            break
    return documents


def _try_beginning(domain: Domain, split: str, unread: dict[str, str], card: str) -> list[Document]:
    try:
        return _beginning(domain, split, READ_BYTES)
    except LifelongError as error:
        unread[card] = str(error)
        return []


def _facts(
    recipe: Recipe,
    card: str,
    domain: Domain,
    train: Sequence[Document],
    held: Sequence[Document],
    encoder: Encoder | None,
) -> CorpusStats:
    size = sum(document.num_bytes for document in train)
    complete = size < READ_BYTES
    whole = float(size) if complete else max(size, domain.source.num_bytes(domain) or size)
    if domain.take_bytes is not None:
        whole = min(whole, domain.take_bytes)
    bytes_per_token = tokens_per_word = None
    encoding = 0.0
    if encoder is not None:
        texts = [encoder.rendered(text) for text in _texts(train, ENCODED_BYTES)]
        begun = time.process_time()
        tokens = sum(len(ids) for ids in encoder.encode_batch(texts))
        length = sum(len(text.encode()) for text in texts)
        encoding = (time.process_time() - begun) / max(1, length)
        bytes_per_token = length / max(1, tokens)
        tokens_per_word = tokens / max(1, sum(len(text.split()) for text in texts))
    held_bytes = sum(document.num_bytes for document in held)
    heldout = held_bytes / bytes_per_token if bytes_per_token and held_bytes < READ_BYTES else None
    read = whole
    if not complete and bytes_per_token is not None:
        read = min(whole, _read_in_pieces(recipe, card, domain, bytes_per_token))
    documents = len(train) * whole / max(1, size)
    return CorpusStats(
        domain.name, whole, documents, bytes_per_token, tokens_per_word, heldout, complete, read, encoding
    )


def _read_in_pieces(recipe: Recipe, card: str, domain: Domain, bytes_per_token: float) -> float:
    """Bytes of the windows that the largest budget of a domain needs."""
    pieces = pieces_of(domain, recipe.sequence_length)
    if pieces is None or any(recipe.reads_all(stage) for stage in recipe.stages if card in stage.cards):
        return math.inf
    budgets = [stage.tokens_by_card().get(card, 0.0) for stage in recipe.stages]
    each = pieces.num_bytes / len(pieces)
    return each * pieces_read(max(budgets, default=0.0) * bytes_per_token / each, len(pieces))


def _texts(documents: Sequence[Document], limit: int) -> list[str]:
    reached = itertools.accumulate((document.num_bytes for document in documents), initial=0)
    return [document.text for document, before in zip(documents, reached, strict=False) if before < limit]


def _fertility(stages: Sequence[str], facts: Mapping[str, CorpusStats]) -> list[str]:
    warnings = []
    for place, card in enumerate(stages):
        mine = facts.get(card)
        earlier = [facts[name] for name in stages[:place] if name in facts]
        if mine is None or not mine.bytes_per_token or not mine.tokens_per_word:
            continue
        known = [fact for fact in earlier if fact.bytes_per_token]
        if not known:
            continue
        worst = min(known, key=lambda fact: fact.bytes_per_token or 0.0)
        if worst.bytes_per_token and worst.bytes_per_token / mine.bytes_per_token > FERTILITY_RISE:
            warnings.append(
                f"{mine.name}: the tokenizer makes {mine.tokens_per_word:.2f} tokens per word of it and "
                f"{mine.bytes_per_token:.2f} bytes per token, of {worst.name} {worst.tokens_per_word:.2f} and "
                f"{worst.bytes_per_token:.2f}: it takes more steps per page than its token count suggests; "
                "a tokenizer trained on such text would help"
            )
    return warnings


def _overlaps(
    recipe: Recipe, stages: Sequence[str], domains: Mapping[str, Domain], read: Mapping[str, Sequence[Document]]
) -> list[str]:
    """Warn of training text that is held-out text of an earlier domain: evaluation would measure memorisation."""
    warnings: list[str] = []
    filters: dict[str, DuplicateFilter] = {}
    for place, card in enumerate(stages):
        if card in read:
            for earlier in stages[:place]:
                if earlier not in filters:
                    continue
                found, compared = _repeats(read[card], filters[earlier])
                if found:
                    warnings.append(
                        f"{domains[card].name}: {found} of its first {compared} documents are held-out text of "
                        f"{domains[earlier].name} ({recipe.evaluate.split}): retention of that domain "
                        "would look better than it is"
                    )
            filters[card] = _filter(_beginning(domains[card], recipe.evaluate.split, HELDOUT_BYTES))
    return warnings


def _filter(documents: Sequence[Document]) -> DuplicateFilter:
    known = DuplicateFilter(near=True)
    for document in documents:
        known.is_new(document)
    return known


def _repeats(documents: Sequence[Document], known: DuplicateFilter) -> tuple[int, int]:
    found = compared = size = 0
    for document in documents:
        found += known.kind_of(document) != "new"
        compared += 1
        size += document.num_bytes
        if size >= COMPARED_BYTES:
            break
    return found, compared
