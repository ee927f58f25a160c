"""Repeated text: exact and near duplicates within a corpus, and overlap between corpora.

Exact means equal after white space is folded. Near means an estimated Jaccard similarity of word 5-grams of
at least 0.8, found with MinHash and locality-sensitive hashing (datasketch).

Source: Broder 1997, "On the resemblance and containment of documents"; thresholds as in Lee et al. 2022,
"Deduplicating training data makes language models better", arXiv 2107.06499.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from functools import lru_cache
from typing import Any

import numpy as np

from lifelong.stream.cards.document import Document

SHINGLE_WORDS = 5
NUM_PERMUTATIONS = 128
NEAR_THRESHOLD = 0.8
_WORD = re.compile(r"\w+")


def minhash(text: str) -> Any:
    """MinHash of the word 5-grams of a text, case folded; None where it has fewer than five words."""
    words = np.array([zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())], dtype=np.uint64)
    if len(words) < SHINGLE_WORDS:
        return None
    length = len(words) - SHINGLE_WORDS + 1
    shingles = np.zeros(length, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        # a polynomial in the hashes of the words, modulo 2^64; its upper half is what MinHash permutes
        shingles = (shingles + words[offset : offset + length]) * np.uint64(0x9E3779B97F4A7C15)
    signature = _empty_signature().copy()
    signature.update_batch(np.unique(shingles >> np.uint64(32)).tolist())
    return signature


@lru_cache(maxsize=1)
def _empty_signature() -> Any:
    from datasketch import MinHash

    # shingles come hashed; drawing the permutations is slow, so every signature begins as a copy of this one
    return MinHash(num_perm=NUM_PERMUTATIONS, seed=1, hashfunc=int)


def folded_digest(text: str) -> int:
    """64 bits of the text with white space folded: the key of exact repetition."""
    folded = " ".join(text.split()).encode("utf-8")
    return int.from_bytes(hashlib.blake2b(folded, digest_size=8).digest(), "little")


class DuplicateFilter:
    """Tells whether a document repeats one seen before; the first of its kind is new.

    Memory grows with the number of documents: about 60 bytes each, with `near` about 4 kB each.
    """

    def __init__(self, *, near: bool, threshold: float = NEAR_THRESHOLD) -> None:
        self.near = near
        self.num_exact = 0
        self.num_near = 0
        self._digests: set[int] = set()
        self._index: Any = None
        if near:
            from datasketch import MinHashLSH

            self._index = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS)
        self._threshold = threshold
        self._signatures: dict[str, Any] = {}

    def is_new(self, document: Document) -> bool:
        """Whether nothing like it came before; remembers it if so."""
        kind = self.kind_of(document, remember=True)
        self.num_exact += kind == "exact"
        self.num_near += kind == "near"
        return kind == "new"

    def kind_of(self, document: Document, *, remember: bool = False) -> str:
        """`exact`, `near` or `new` against everything remembered."""
        digest = folded_digest(document.text)
        if digest in self._digests:
            return "exact"
        signature = minhash(document.text) if self.near else None
        if signature is not None and self._is_near(signature):
            return "near"
        if remember:
            self._digests.add(digest)
            if signature is not None:
                name = f"{len(self._signatures)}"
                self._signatures[name] = signature.hashvalues.astype(np.uint32)
                self._index.insert(name, signature)
        return "new"

    def _is_near(self, signature: Any) -> bool:
        own = signature.hashvalues.astype(np.uint32)
        # the index gives candidates; the estimate decides
        return any(np.mean(self._signatures[name] == own) >= self._threshold for name in self._index.query(signature))
