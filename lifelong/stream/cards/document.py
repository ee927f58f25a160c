"""A document and the key by which equal texts are known; what readers yield before it is one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `key` is a hash of the text: equal texts have equal keys, wherever they are."""

    text: str
    key: str
    num_bytes: int


class Conversation(str):
    """Messages as JSON, a list of objects with `role` and `content`; an `Encoder` renders them by the chat template."""

    __slots__ = ()


@dataclass(frozen=True)
class Bad:
    """A document that cannot be read, and why: file, line, value."""

    reason: str


RawDocument = tuple[str, "str | Bad"]  # its place, and the text


@dataclass(frozen=True)
class Reading:
    """Reading options: the field of the text, the longest document in bytes, plain text by file or by block.

    `messages`: the field holds lists of {role, content} instead of text.
    """

    text_field: str
    max_bytes: int
    blocks: bool = False
    messages: bool = False

    def text(self, value: Any, place: str) -> str | Bad:
        """The text of a row's field, or why it is none; the value itself is not quoted."""
        is_conversation = _is_conversation(value)
        if self.messages and is_conversation:
            return Conversation(json.dumps([_without_nulls(message) for message in value], ensure_ascii=False))
        if self.messages:
            return "" if value == [] else Bad(f"{place}: {self.text_field}: no list of {{role, content}}")
        if isinstance(value, str):
            return value
        hint = "; a list of messages is read with messages_field" if is_conversation else ""
        return Bad(f"{place}: {self.text_field}: a text is needed, this is {type(value).__name__}{hint}")


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(message, Mapping)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in value
        )
    )


def _without_nulls(message: Mapping[str, Any]) -> dict[str, Any]:
    """A table has every key in every row."""
    return {key: value for key, value in message.items() if value is not None}


def document_key(text: str) -> str:
    """128 bits of BLAKE2b over the UTF-8 of the text, in hex."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()
