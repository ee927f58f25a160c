"""Vocabularies of several tokenizers as one: which of their tokens are the same string, and where each one goes.

A token is identified by the string it represents, whatever its tokenizer marks it with: `Ġthe` (byte-level BPE), `▁the`
(sentencepiece) and `the` (WordPiece, whose `##the` continues a word) are all the bytes of " the". Special tokens
agree by what they are for, others by the same spelling.

Source: Khanuja et al. 2021 (MergeDistill, arXiv 2106.02834), section 3: union of the teachers' vocabularies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lifelong.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IntArray = NDArray[np.int64]
Key = tuple[str, str | bytes]
ROLES = ("bos", "eos", "cls", "sep", "pad", "mask", "unk")
NOWHERE = -1
# a character that Unicode reserves for no text: it begins the names of ids that a tokenizer must never write
NEVER = "\U0010ffff"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_letters() -> dict[int, str]:
    """The letter that byte-level BPE writes for each byte (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


_LETTERS = byte_letters()
_BYTES = {letter: byte for byte, letter in _LETTERS.items()}


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one tokenizer by id.

    Args:
        name: of the tokenizer, for messages.
        spelling: how its tokens are written: `bytes`, `spaces` (sentencepiece), `words` (WordPiece) or `as is`.
        tokens: by id; None where no token has the id.
        keys: the string each token represents; no two of a vocabulary are equal.
        roles: id of the special tokens by what they are for.
    """

    name: str
    spelling: str
    tokens: tuple[str | None, ...]
    keys: tuple[Key | None, ...]
    roles: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.tokens)


def backend_json(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The rules of a tokenizer as the `tokenizers` library writes them.

    Raises:
        InputError: it is not one of that library.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"tokenizer {tokenizer.name_or_path!r}: its vocabulary cannot be merged with others, it has no "
            "tokenizer.json (a fast tokenizer); convert it first"
        )
    rules: dict[str, Any] = json.loads(backend.to_str())
    return rules


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, name: str) -> Vocabulary:
    """The vocabulary of any fast tokenizer."""
    rules = backend_json(tokenizer)
    spelling = spelling_of(rules)
    by_token = tokenizer.get_vocab()
    tokens: list[str | None] = [None] * (max(by_token.values()) + 1)
    for token, number in by_token.items():
        tokens[number] = None if token.startswith(NEVER) else token
    added = {entry["id"]: entry for entry in rules["added_tokens"]}
    keys: list[Key | None] = []
    taken: set[Key] = set()
    bytes_last = sorted(range(len(tokens)), key=lambda n: bool(_BYTE_TOKEN.fullmatch(tokens[n] or "")))
    found: dict[int, Key] = {}
    for number in bytes_last:  # `<0x41>` is the byte of `A` only where there is no token `A`
        if (token := tokens[number]) is not None:
            key = _key(token, spelling, added.get(number))
            found[number] = key if key not in taken else ("as is", token)
            taken.add(found[number])
    keys = [found.get(number) for number in range(len(tokens))]
    ids = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    roles = {role: int(number) for role, number in ids.items() if number is not None and number < len(tokens)}
    return Vocabulary(name, spelling, tuple(tokens), tuple(keys), roles)


def spelling_of(rules: Mapping[str, Any]) -> str:
    """Spelling of a tokenizer's tokens, from its rules."""
    model = rules["model"]
    around = json.dumps([rules["pre_tokenizer"], rules["decoder"], rules["normalizer"]], ensure_ascii=False)
    if '"ByteLevel"' in around:
        return "bytes"
    if model["type"] == "WordPiece" and model["continuing_subword_prefix"]:
        return "words"
    if "▁" in around or '"Metaspace"' in around:
        return "spaces"
    return "as is"


def _key(token: str, spelling: str, added: Mapping[str, Any] | None) -> Key:
    if added is not None:
        return ("special" if added["special"] else "added", token)
    if spelling == "bytes" and all(letter in _BYTES for letter in token):
        return ("text", bytes(_BYTES[letter] for letter in token))
    if spelling == "words":
        return ("text", token[2:].encode() if token.startswith("##") else f" {token}".encode())
    if spelling == "spaces":
        byte = _BYTE_TOKEN.fullmatch(token)
        return ("text", bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode())
    return ("as is", token)


def spelled(key: Key, spelling: str) -> str | None:
    """The token in that spelling; None where it cannot."""
    kind, content = key
    if isinstance(content, str):
        return content if kind != "as is" or spelling == "as is" else None
    if spelling == "bytes":
        return "".join(_LETTERS[byte] for byte in content)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return f"<0x{content[0]:02X}>" if spelling == "spaces" and len(content) == 1 else None
    if spelling == "spaces":
        return text.replace(" ", "▁")
    if spelling == "words" and text.strip():
        return text[1:] if text.startswith(" ") else f"##{text}"
    return None


@dataclass(frozen=True)
class Union:
    """One vocabulary out of several.

    Args:
        keys: the string each id of the union represents; None for ids of the first vocabulary without a token.
        roles: id of the special tokens by what they are for.
        maps: for each vocabulary, the union's id of every token `[V]`; -1 where it has no place.
    """

    keys: tuple[Key | None, ...]
    roles: Mapping[str, int]
    maps: tuple[IntArray, ...]

    def __len__(self) -> int:
        return len(self.keys)


def unite(vocabularies: Sequence[Vocabulary], *, fixed: bool = False) -> Union:
    """The union; the first vocabulary keeps its ids, the others' new tokens follow in their own order.

    No two tokens of one vocabulary share an id. A special token takes the place of the one that is there for the same
    purpose, as long as its own vocabulary has no other token there.

    Args:
        vocabularies: at least one.
        fixed: the first one is the union; tokens that it lacks have no place.
    """
    keys = list(vocabularies[0].keys)
    roles = dict(vocabularies[0].roles)
    maps = [np.array([NOWHERE if key is None else number for number, key in enumerate(keys)], dtype=np.int64)]
    places = {key: number for number, key in enumerate(keys) if key is not None}
    for vocabulary in vocabularies[1:]:
        placing = _Placing(vocabulary, keys, places, fixed)
        for role, number in vocabulary.roles.items():
            placing.put(number, roles.get(role))
            if number in placing.placed:
                roles.setdefault(role, placing.placed[number])
        for number in range(len(vocabulary)):
            placing.put(number, None)
        maps.append(placing.ids_V)
    return Union(tuple(keys), roles, tuple(maps))


class _Placing:
    """Puts the tokens of one vocabulary into a union that grows."""

    def __init__(self, vocabulary: Vocabulary, keys: list[Key | None], places: dict[Key, int], fixed: bool) -> None:
        self.vocabulary, self.keys, self.places, self.fixed = vocabulary, keys, places, fixed
        self.placed: dict[int, int] = {}
        self.used: set[int] = set()

    @property
    def ids_V(self) -> IntArray:  # noqa: N802 - a shape letter
        """Place of every token."""
        return np.array([self.placed.get(n, NOWHERE) for n in range(len(self.vocabulary))], dtype=np.int64)

    def put(self, number: int, place: int | None) -> None:
        """Put a token at `place` if it is free, else where its string is, else at the end."""
        key = self.vocabulary.keys[number]
        if key is None or number in self.placed:
            return
        wanted = (place, self.places.get(key))
        free = next((found for found in wanted if found is not None and found not in self.used), None)
        if free is None:
            if self.fixed:
                return
            if key in self.places:
                key = ("as is", f"{self.vocabulary.name}:{number}")
            free = self.places[key] = len(self.keys)
            self.keys.append(key)
        self.placed[number] = free
        self.used.add(free)


def inverse(ids_V: IntArray, size: int) -> IntArray:
    """Own id of every id of the union `[size]`; -1 for those that the vocabulary lacks."""
    own = np.full(size, NOWHERE, dtype=np.int64)
    known = ids_V >= 0
    own[ids_V[known]] = np.flatnonzero(known)
    return own
