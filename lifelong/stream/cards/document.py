"""A document and the key by which equal texts are known."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `key` is a hash of the text: equal texts have equal keys, wherever they stand."""

    text: str
    key: str
    num_bytes: int


def document_key(text: str) -> str:
    """128 bits of BLAKE2b over the UTF-8 of the text, in hex."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()
