"""A document and the key by which equal texts are known; what readers yield before it is one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `key` is a hash of the text: equal texts have equal keys, wherever they are."""

    text: str
    key: str
    num_bytes: int


@dataclass(frozen=True)
class Bad:
    """A document that cannot be read, and why: file, line, value."""

    reason: str


RawDocument = tuple[str, "str | Bad"]  # its place, and the text


@dataclass(frozen=True)
class Reading:
    """Reading options: the field of the text, the longest document in bytes, plain text by file or by block."""

    text_field: str
    max_bytes: int
    blocks: bool = False


def document_key(text: str) -> str:
    """128 bits of BLAKE2b over the UTF-8 of the text, in hex."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()
