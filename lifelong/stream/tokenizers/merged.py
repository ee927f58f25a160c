"""The tokenizers of a merged run: text of a domain in the tokens of its own teacher, written in the ids of a union.

A folder of them, beside the tokenizer of the whole union: `domain_tokenizers/NAME/` is a plain tokenizer that
writes ids of the union, `maps.safetensors` the place of every token of the original ones, `vocabularies.json` what
they were made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lifelong.errors import CorruptionError, InputError
from lifelong.files import named_entry, read_json, write_json
from lifelong.stream.tokenizers.load import DOMAIN_TOKENIZERS, load_tokenizer, tokenizer_fingerprint
from lifelong.stream.tokenizers.remapping import union_names, union_tokenizer, with_union_ids
from lifelong.stream.tokenizers.vocabulary import IntArray, inverse, unite, vocabulary_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
_FACTS, _MAPS = "vocabularies.json", "maps.safetensors"


@dataclass(frozen=True)
class DomainTokenizer:
    """Tokenizer of one domain and its map into the union.

    Args:
        name: of the domain.
        source: where the original tokenizer was found.
        fingerprint: of the original.
        tokenizer: cuts as the original does, writes ids of the union.
        ids_V: place of every token of the original in the union; -1 where it has none.
        shared: how many of them share an id with the run's first vocabulary, or an earlier one.
        mask_id: id of the original's mask token.
        special_ids: ids of the original's special tokens.
    """

    name: str
    source: str
    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    ids_V: IntArray
    shared: int
    mask_id: int | None
    special_ids: tuple[int, ...]

    @property
    def unplaced(self) -> int:
        """Tokens of the original that have no place in the union."""
        return int((self.ids_V < 0).sum())

    def own_ids(self, size: int) -> IntArray:
        """Id in the original of every id of the union `[size]`; -1 where it lacks it."""
        return inverse(self.ids_V, size)

    def facts(self) -> dict[str, Any]:
        """Facts kept beside the tokenizer and the map."""
        return {
            "source": self.source, "fingerprint": self.fingerprint, "merged": tokenizer_fingerprint(self.tokenizer),
            "map": _hash(self.ids_V), "tokens": len(self.ids_V), "shared": self.shared, "unplaced": self.unplaced,
            "mask_id": self.mask_id, "special_ids": list(self.special_ids),
        }  # fmt: skip


@dataclass(frozen=True)
class MergedTokenizers:
    """The tokenizer of the union, and that of each domain that has one."""

    tokenizer: PreTrainedTokenizerBase
    domains: Mapping[str, DomainTokenizer]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the union and of every map."""
        parts = [tokenizer_fingerprint(self.tokenizer)]
        for name in sorted(self.domains):
            own = self.domains[name]
            parts += [name, own.fingerprint, tokenizer_fingerprint(own.tokenizer), _hash(own.ids_V)]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    def of(self, domain: str) -> PreTrainedTokenizerBase:
        """Tokenizer of a domain; the union's where it has none of its own."""
        return self.domains[domain].tokenizer if domain in self.domains else self.tokenizer

    def summary(self) -> str:
        """Summary: number of tokens, and how many of each domain's are shared with others."""
        each = [
            f"{name} {len(own.ids_V):,} ({own.shared:,} were there"
            + (f", {own.unplaced:,} have no place)" if own.unplaced else ")")
            for name, own in self.domains.items()
        ]
        return f"vocabularies merged to {len(self.tokenizer):,} tokens: {', '.join(each)}"

    def read_by(self, domain: str, fingerprint: str) -> IntArray | None:
        """Place in the union of every token of the tokenizer with this fingerprint, if it is what reads the domain.

        None where it is not. A tokenizer that writes ids of the union already has every token where it is.
        """
        if fingerprint == tokenizer_fingerprint(self.of(domain)):
            return np.arange(len(self.tokenizer), dtype=np.int64)
        own = self.domains.get(domain)
        return own.ids_V if own is not None and own.fingerprint == fingerprint else None

    def save(self, folder: Path) -> None:
        """All of it, the tokenizer of the union at the top: `AutoTokenizer` loads it from there."""
        self.tokenizer.save_pretrained(folder)
        self.save_domains(folder)

    def save_domains(self, folder: Path) -> None:
        """Save only the tokenizers of the domains, beside that of the union."""
        from safetensors.numpy import save_file

        own = folder / DOMAIN_TOKENIZERS
        own.mkdir(parents=True)
        for name, domain in self.domains.items():
            domain.tokenizer.save_pretrained(own / name)
        save_file({name: domain.ids_V.astype(np.int32) for name, domain in self.domains.items()}, own / _MAPS)
        facts = {name: domain.facts() for name, domain in self.domains.items()}
        write_json(own / _FACTS, {"format": FORMAT, "tokens": len(self.tokenizer), "domains": facts})


def merge_tokenizers(
    sources: Mapping[str, str], *, first: PreTrainedTokenizerBase | None = None, fixed: bool = False
) -> MergedTokenizers:
    """The union of the vocabularies of several tokenizers.

    Args:
        sources: for each domain, the folder or hub id of what reads it; the same one may read several.
        first: a tokenizer whose ids stay as they are, that of the model a run begins with.
        fixed: the union is the vocabulary of `first`; other tokens have no place in it.

    Raises:
        InputError: a tokenizer cannot be loaded, or its vocabulary cannot be merged.
    """
    if fixed and first is None:
        raise InputError("tokenizer.fixed: there is no checkpoint whose vocabulary could stay; leave `fixed` out")
    named = {source: load_tokenizer(source) for source in dict.fromkeys(sources.values())}
    tokenizers = [*([] if first is None else [first]), *named.values()]
    names = [*([] if first is None else ["the student"]), *named]
    vocabularies = [vocabulary_of(tokenizer, name) for tokenizer, name in zip(tokenizers, names, strict=True)]
    union = unite(vocabularies, fixed=fixed)
    top = union_tokenizer(tokenizers, vocabularies, union)
    offset = len(tokenizers) - len(named)
    written = {
        source: with_union_ids(
            tokenizer,
            vocabularies[n],
            union.maps[n],
            union_names(union, vocabularies[n].spelling),
        )
        for n, (source, tokenizer) in enumerate(named.items(), offset)
    }
    earlier: set[int] = set(union.maps[0].tolist()) if offset else set()
    shared: dict[str, int] = {}
    for n, source in enumerate(named, offset):
        places = {place for place in union.maps[n].tolist() if place >= 0}
        shared[source] = len(places & earlier)
        earlier |= places
    return MergedTokenizers(
        top,
        {
            domain: DomainTokenizer(
                domain,
                source,
                tokenizer_fingerprint(named[source]),
                written[source],
                union.maps[list(named).index(source) + offset],
                shared[source],
                named[source].mask_token_id,
                tuple(sorted(set(named[source].all_special_ids))),
            )
            for domain, source in sources.items()
        },
    )


def load_merged(folder: Path) -> MergedTokenizers | None:
    """Load what `MergedTokenizers.save` wrote; None where the folder holds a single tokenizer.

    Raises:
        CorruptionError: a tokenizer or a map is not what was written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    own = folder / DOMAIN_TOKENIZERS
    if not (own / _FACTS).is_file():
        return None
    try:
        facts: Mapping[str, Any] = read_json(own / _FACTS)["domains"]
        maps = load_file(own / _MAPS)
        domains = {
            name: DomainTokenizer(
                name, fact["source"], fact["fingerprint"], load_tokenizer(named_entry(own, name)),
                maps[name].astype(np.int64),
                fact["shared"], fact["mask_id"], tuple(fact["special_ids"]),
            )
            for name, fact in facts.items()
        }  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError, SafetensorError, InputError) as error:
        raise CorruptionError(f"{own}: the tokenizers of the domains cannot be read ({error})") from None
    changed = [name for name, domain in domains.items() if domain.facts() != facts[name]]
    if changed:
        raise CorruptionError(
            f"{own}: tokenizer or id map of {', '.join(changed)} differs from what was written; restore the folder, "
            "`lifelong check` lists everything that was changed"
        )
    return MergedTokenizers(load_tokenizer(folder), domains)


def _hash(ids_V: IntArray) -> str:
    return hashlib.sha256(ids_V.astype("<i4").tobytes()).hexdigest()
