from __future__ import annotations

import random
import statistics

import pytest

from lifelong.stream.cards.document import Document, document_key
from lifelong.stream.cards.overlap import DuplicateFilter, folded_digest, minhash


def _document(text: str) -> Document:
    return Document(text, document_key(text), len(text.encode()))


def test_estimate_is_the_jaccard_similarity_of_word_5_grams() -> None:
    chance = random.Random(0)
    vocabulary = [f"w{i}" for i in range(5000)]
    errors = []
    for _ in range(40):
        first = chance.choices(vocabulary, k=400)
        second = list(first)
        for i in chance.sample(range(400), chance.randrange(1, 40)):
            second[i] = "other"
        grams = [{tuple(words[i : i + 5]) for i in range(396)} for words in (first, second)]
        exact = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
        errors.append(minhash(" ".join(first)).jaccard(minhash(" ".join(second))) - exact)
    assert statistics.mean(errors) == pytest.approx(0, abs=0.015)
    assert statistics.pstdev(errors) < 0.06


def test_filter_keeps_the_first_of_its_kind() -> None:
    words = [f"w{i}" for i in range(200)]
    seen = DuplicateFilter(near=True)
    assert seen.is_new(_document(" ".join(words)))
    assert not seen.is_new(_document("\n".join(words) + "\n"))
    assert not seen.is_new(_document(" ".join([*words, "more"])))
    assert seen.is_new(_document(" ".join(reversed(words))))
    assert (seen.num_exact, seen.num_near) == (1, 1)
    exact_only = DuplicateFilter(near=False)
    assert exact_only.is_new(_document(" ".join(words)))
    assert exact_only.is_new(_document(" ".join([*words, "more"])))


def test_short_texts_are_compared_exactly() -> None:
    assert minhash("only four words here") is None
    assert folded_digest("a  b\n") == folded_digest("a b")
    seen = DuplicateFilter(near=True)
    assert seen.is_new(_document("a b"))
    assert not seen.is_new(_document(" a b "))
