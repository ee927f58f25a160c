"""Tokenizers that write the ids of a union of vocabularies: the rules of `tokenizers` with other numbers.

What comes out is a plain tokenizer: the id map is in its vocabulary, and whatever depends on a tokenizer's
fingerprint (tokenised text, held-out documents, caches) depends on the map.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lifelong.errors import InputError
from lifelong.stream.tokenizers.vocabulary import NEVER, ROLES, IntArray, Union, Vocabulary, backend_json, spelled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

Rules = dict[str, Any]


def union_names(union: Union, spelling: str) -> list[str]:
    """A name for every id of the union in the spelling of one tokenizer; no name comes twice."""
    names: list[str] = []
    taken: set[str] = set()
    for number, key in enumerate(union.keys):
        name = None if key is None else spelled(key, spelling)
        if name is None or name in taken:
            name = f"{NEVER}{number}"
        names.append(name)
        taken.add(name)
    return names


def with_union_ids(
    tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, ids_V: IntArray, names: Sequence[str]
) -> PreTrainedTokenizerFast:
    """The same cuts as `tokenizer`, written in ids of the union.

    Args:
        tokenizer: with `vocabulary`.
        vocabulary: its tokens.
        ids_V: place of every token; tokens without one are never written, their text is cut more finely.
        names: of all ids, for those that this tokenizer lacks.

    Raises:
        InputError: without the tokens that have no place some text could not be written.
    """
    rules = backend_json(tokenizer)
    place = {token: int(ids_V[n]) for n, token in enumerate(vocabulary.tokens) if token is not None and ids_V[n] >= 0}
    if np.any(ids_V[[key is not None for key in vocabulary.keys]] < 0):
        _check_alphabet(vocabulary, rules, place)
    by_place = {number: token for token, number in place.items()}
    # the real names of the others can be told apart from what this tokenizer writes only where merges decide
    model = rules["model"]
    silent = model["type"] == "BPE" and not model.get("ignore_merges") and vocabulary.spelling == "bytes"
    own = set(vocabulary.tokens)
    others = [name if silent and name not in own else f"{NEVER}{number}" for number, name in enumerate(names)]
    _renumber(rules, [by_place.get(number, name) for number, name in enumerate(others)], place)
    return _tokenizer(rules, tokenizer)


def union_tokenizer(
    tokenizers: Sequence[PreTrainedTokenizerBase], vocabularies: Sequence[Vocabulary], union: Union
) -> PreTrainedTokenizerFast:
    """One tokenizer over the whole union: cuts as the first one does, and knows the others' tokens.

    Where the others are BPE of the same spelling, their merges follow the first one's, so that text of their domain is
    cut into their tokens too, though not always exactly as they would.
    """
    first = vocabularies[0]
    rules = backend_json(tokenizers[0])
    names = union_names(union, first.spelling)
    for number, token in enumerate(first.tokens):
        if token is not None:
            names[number] = token
    if rules["model"]["type"] == "BPE":
        known = {tuple(pair) for pair in rules["model"]["merges"]}
        for tokenizer, vocabulary in zip(tokenizers[1:], vocabularies[1:], strict=True):
            if vocabulary.spelling != first.spelling or len(union) == len(first):
                continue
            theirs = backend_json(tokenizer)["model"].get("merges", [])
            rules["model"]["merges"] += [pair for pair in theirs if tuple(pair) not in known]
            known |= {tuple(pair) for pair in theirs}
    places = {token: number for number, token in enumerate(first.tokens) if token is not None}
    scores = _scores(tokenizers[1:], vocabularies[1:], union, len(first))
    _renumber(rules, names, places, scores)
    roles = {role: names[number] for role, number in union.roles.items() if role in ROLES}
    have = {entry["content"] for entry in rules["added_tokens"]}
    special = {key[1] for key in union.keys if key is not None and key[0] == "special"}
    rules["added_tokens"] += [
        _added(number, name) for number, name in enumerate(names) if name in special and name not in have
    ]
    return _tokenizer(rules, tokenizers[0], roles)


def _check_alphabet(vocabulary: Vocabulary, rules: Rules, place: Mapping[str, int]) -> None:
    """Refuse to leave tokens out where the rest cannot spell every text."""
    bytes_there = sum(len(token) == 1 for token in place)
    if rules["model"]["type"] != "BPE" or vocabulary.spelling != "bytes" or bytes_there < 256:
        raise InputError(
            f"tokenizer.fixed: the student's vocabulary lacks tokens of {vocabulary.name!r}, and what is shared cannot "
            "spell every text; that needs byte-level BPE on both sides. Leave `fixed` out: new tokens are then added"
        )


def _renumber(
    rules: Rules, tokens: Sequence[str], places: Mapping[str, int], scores: Mapping[int, float] | None = None
) -> None:
    """Give a tokenizer's rules the vocabulary `tokens`; `places` are the ids of those that it had before."""
    model = rules["model"]
    if model["type"] == "Unigram":
        before = dict(model["vocab"])
        lowest = min(before.values())
        unknown = model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else None
        model["vocab"] = [
            [token, before.get(token, (scores or {}).get(number, lowest))] for number, token in enumerate(tokens)
        ]
        model["unk_id"] = None if unknown is None else places[unknown]
    else:
        model["vocab"] = {token: number for number, token in enumerate(tokens)}
    if model["type"] == "BPE":
        model["merges"] = [
            pair for pair in model["merges"] if all(part in model["vocab"] for part in (*pair, "".join(pair)))
        ]
    rules["added_tokens"] = sorted(
        ({**entry, "id": places[entry["content"]]} for entry in rules["added_tokens"] if entry["content"] in places),
        key=lambda entry: int(entry["id"]),
    )
    rules["truncation"] = rules["padding"] = None
    if rules["post_processor"] is not None:
        rules["post_processor"] = _renumbered_processor(rules["post_processor"], places)


def _renumbered_processor(processor: Any, places: Mapping[str, int]) -> Any:
    """A post-processor with the new ids of its special tokens."""
    changed = dict(processor)
    if "processors" in processor:
        changed["processors"] = [_renumbered_processor(part, places) for part in processor["processors"]]
    if isinstance(processor.get("special_tokens"), dict):
        changed["special_tokens"] = {
            name: {**entry, "ids": [places.get(token, 0) for token in entry["tokens"]]}
            for name, entry in processor["special_tokens"].items()
        }
    for end in ("sep", "cls"):
        if isinstance(processor.get(end), list | tuple):
            changed[end] = [processor[end][0], places.get(processor[end][0], 0)]
    return changed


def _scores(
    tokenizers: Sequence[PreTrainedTokenizerBase], vocabularies: Sequence[Vocabulary], union: Union, size: int
) -> dict[int, float]:
    """Log-probabilities of new tokens that come from unigram tokenizers."""
    scores: dict[int, float] = {}
    for tokenizer, vocabulary, ids_V in zip(tokenizers, vocabularies, union.maps[1:], strict=True):
        model = backend_json(tokenizer)["model"]
        if model["type"] == "Unigram":
            theirs = dict(model["vocab"])
            for number, token in enumerate(vocabulary.tokens):
                if token in theirs and ids_V[number] >= size:
                    scores.setdefault(int(ids_V[number]), float(theirs[token]))
    return scores


def _added(number: int, content: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **plain, "special": True}


def _tokenizer(
    rules: Rules, like: PreTrainedTokenizerBase, roles: Mapping[str, str] | None = None
) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if roles is None:
        kept = {entry["content"] for entry in rules["added_tokens"]} | set(_plain_tokens(rules))
        own = {role: getattr(like, f"{role}_token", None) for role in ROLES}
        roles = {role: str(token) for role, token in own.items() if token is not None and str(token) in kept}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(rules, ensure_ascii=False)),
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": token for role, token in roles.items()},
    )


def _plain_tokens(rules: Rules) -> list[str]:
    vocabulary = rules["model"]["vocab"]
    return list(vocabulary) if isinstance(vocabulary, dict) else [token for token, _ in vocabulary]
