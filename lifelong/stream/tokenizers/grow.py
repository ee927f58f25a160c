"""New tokens of a domain for a tokenizer that exists: its own algorithm, continued on the domain's text.

The most frequent pair of neighbouring tokens becomes one, again and again, from how the tokenizer splits the text now.
For BPE the merges go behind those that it has, for Unigram the pieces get the score of their frequency. Text in which
no new token occurs is split as before. `add_tokens` of transformers would cut its tokens out of the raw text first, in
the middle of other words too.

Source: continued BPE training, Purason et al. 2025, arXiv 2512.03989.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lifelong.errors import InputError

KINDS = ("BPE", "Unigram")
FEWEST = 5
"""A pair that occurs less often in the text is no token."""
_WORD = re.compile("\u2581?[^\u2581]+|\u2581")  # where nothing splits before the model, as in Llama 2
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class GrownTokenizer:
    """A tokenizer with new tokens, and the tokens that each of them was split into before."""

    tokenizer: Any
    pieces: dict[int, tuple[int, ...]]

    @property
    def size(self) -> int:
        """Rows that the embedding needs."""
        return 1 + max(map(int, self.tokenizer.get_vocab().values()))


def grow_tokenizer(tokenizer: Any, texts: Iterable[str], count: int) -> GrownTokenizer:
    """Add the `count` most useful tokens of some text.

    Raises:
        InputError: the tokenizer is no fast BPE or Unigram, or the text has too few such tokens.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(backend.model).__name__ if backend is not None else "slow"
    if kind not in KINDS:
        raise InputError(
            f"--add-tokens-from: the tokenizer is {'a slow one' if kind == 'slow' else kind}; tokens are added to fast "
            f"tokenizers of the kinds {' and '.join(KINDS)}"
        )
    words = list(_split_words(backend, texts))
    known = tokenizer.get_vocab()
    merges = list(itertools.islice(_merges(words, set(known), count), 2 * count + 1))
    fresh = list(dict.fromkeys(token for pair in merges if (token := "".join(pair)) not in known))
    if len(fresh) < count:
        raise InputError(
            f"--add-tokens-from: the text gives {len(fresh)} new tokens that occur at least {FEWEST} times, and "
            f"{count} are wanted; ask for at most that, or take a card with more text"
        )
    first = 1 + max(known.values())
    ids = {**known, **{token: first + place for place, token in enumerate(fresh)}}
    pieces: dict[int, tuple[int, ...]] = {}
    for left, right in merges:
        token = ids[left + right]
        if token >= first:
            halves = (pieces.get(ids[part], (ids[part],)) for part in (left, right))
            pieces.setdefault(token, tuple(itertools.chain.from_iterable(halves)))
    written = json.loads(backend.to_str())
    (_add_merges if kind == "BPE" else _add_pieces)(written, merges, ids, words)
    grown = copy.deepcopy(tokenizer)
    grown._tokenizer = type(backend).from_str(json.dumps(written))
    return GrownTokenizer(grown, pieces)


def _split_words(backend: Any, texts: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    """Words of a text as tokens, and how often they come; what the model has no token for ends a word."""
    counts: Counter[str] = Counter()
    for text in texts:
        clean = backend.normalizer.normalize_str(text) if backend.normalizer else text
        parts = backend.pre_tokenizer.pre_tokenize_str(clean) if backend.pre_tokenizer else [(clean, None)]
        counts.update(word for part, _ in parts for word in _WORD.findall(part))
    unknown = getattr(backend.model, "unk_token", None)
    for word, number in counts.items():
        run: list[str] = []
        for token in [*backend.model.tokenize(word), None]:
            if token is not None and token.value != unknown and not _BYTE.fullmatch(token.value):
                run.append(token.value)
                continue
            if len(run) > 1:
                yield run, number
            run = []


def _merges(words: Sequence[tuple[list[str], int]], known: set[str], count: int) -> Iterator[tuple[str, str]]:
    """Pairs in the order in which they become one, until there are `count` tokens that are not known."""
    pairs = _Pairs(words)
    while count > 0 and (pair := pairs.take()) is not None:
        yield pair
        count -= "".join(pair) not in known
        known.add("".join(pair))


class _Pairs:
    """Neighbouring tokens of words, the most frequent pair first; a pair that is taken becomes one token."""

    def __init__(self, words: Sequence[tuple[list[str], int]]) -> None:
        self.words = [list(word) for word, _ in words]
        self.times = [number for _, number in words]
        self.numbers: Counter[tuple[str, str]] = Counter()
        self.where: dict[tuple[str, str], set[int]] = defaultdict(set)
        self.heap: list[tuple[int, tuple[str, str]]] = []
        self._offer({pair for place in range(len(words)) for pair in self._count(place, 1)})

    def take(self) -> tuple[str, str] | None:
        """The most frequent pair; None where no other is frequent enough."""
        while self.heap:
            number, pair = heapq.heappop(self.heap)
            if -number != self.numbers[pair]:
                self._offer({pair})  # it has been counted anew since
                continue
            changed: set[tuple[str, str]] = set()
            for place in self.where.pop(pair):
                self._count(place, -1)
                self.words[place] = _merged(self.words[place], pair)
                changed |= self._count(place, 1)
            self._offer(changed)
            return pair
        return None

    def _count(self, place: int, sign: int) -> set[tuple[str, str]]:
        pairs = list(itertools.pairwise(self.words[place]))
        for pair in pairs:
            self.numbers[pair] += sign * self.times[place]
            self.where[pair].add(place)
        return set(pairs)

    def _offer(self, pairs: set[tuple[str, str]]) -> None:
        for pair in sorted(pairs):
            if self.numbers[pair] >= FEWEST and not _has_digit(pair):
                heapq.heappush(self.heap, (-self.numbers[pair], pair))


def _has_digit(pair: tuple[str, str]) -> bool:
    """Numbers stay in the pieces that the model has learned to count with."""
    return any(letter.isdigit() for part in pair for letter in part)


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    place = 0
    while place < len(word):
        both = tuple(word[place : place + 2]) == pair
        merged.append("".join(pair) if both else word[place])
        place += 1 + both
    return merged


def _add_merges(written: Any, merges: Sequence[tuple[str, str]], ids: dict[str, int], _: Any) -> None:
    model = written["model"]
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    model["merges"] += [" ".join(pair) if as_text else list(pair) for pair in merges]
    model["vocab"] |= {left + right: ids[left + right] for left, right in merges}


def _add_pieces(
    written: Any, merges: Sequence[tuple[str, str]], ids: dict[str, int], words: Sequence[tuple[list[str], int]]
) -> None:
    """A piece is as likely as it is frequent, and never less likely than the pieces that it replaces."""
    model = written["model"]
    rows = model["vocab"]
    places, scores = {token: place for place, token in ids.items()}, dict(rows)
    total = sum(number * len(word) for word, number in words)
    text: Counter[str] = Counter()
    for word, number in words:
        text["".join(word)] += number
    lowest = min(score for _, score in rows)
    for place in range(len(rows), 1 + max(places)):  # a piece's number is its place: added tokens have one there too
        rows.append([places.get(place, f"<unused{place}>"), lowest])
    for left, right in merges:
        token = left + right
        if token not in scores:
            number = sum(many * word.count(token) for word, many in text.items())
            parts = scores.get(left, lowest) + scores.get(right, lowest)
            scores[token] = max(math.log(max(1, number) / max(1, total)), parts + 1e-3)
            rows[ids[token]][1] = scores[token]
