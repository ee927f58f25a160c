"""Domain cards: one YAML file names one corpus. Reading a card loads none of the heavy libraries.

A card is looked up by name in `./domains`, then in the folders of `$LIFELONG_DOMAINS`, then among the
shipped ones; a path to a YAML file works everywhere a name does.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from lifelong.allowed import remember_allowed
from lifelong.errors import InputError, LifelongError, did_you_mean
from lifelong.plugins import shipped_folder
from lifelong.records import NAME_PATTERN
from lifelong.schema import (
    CARD,
    GLANCE_FAULTS,
    Location,
    Written,
    glance,
    parse_fraction,
    read_yaml,
    shortened,
    validation_lines,
)
from lifelong.stream.cards.document import Reading
from lifelong.stream.cards.paths import CardFile, require_own
from lifelong.stream.cards.sources import AnySource, source_kinds

SPLITS = ("train", "valid", "test")
SUFFIXES = (".yaml", ".yml")

_SIZE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_size(value: Any) -> Any:
    """`100MB`, `64 MiB`, `2k` or a plain number as bytes; anything else is returned for the validator."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", value.lower())
        if match and (match[2] or "") in _SIZE_UNITS:
            return int(float(match[1]) * _SIZE_UNITS[match[2] or ""])
    return value


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    Field(gt=0),
    Written(r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtT]i?)?[bB]?\s*$", "64 MiB"),
]


class Domain(CardFile):
    """A named corpus. `path` is the card it was read from, the folder of relative paths."""

    name: str = Field(description="letters, digits, '.', '_' and '-'; at most 64")
    source: AnySource
    text_field: str = Field("text", min_length=1, description="the field or column that holds the text")
    messages_field: str | None = Field(
        None,
        description="a column of messages, lists of {role, content}, instead of text: rendered by the chat template",
    )
    licence: str | None = None
    citation: str | None = None
    description: str | None = None
    dedup: Literal["none", "exact", "near"] = Field(
        "none", description="drop repeated documents of the training split, and those that are held out"
    )
    held_out: Annotated[float, BeforeValidator(parse_fraction)] = Field(
        0.05, gt=0.0, lt=0.5, description="share of documents for each split that has to be cut by hash"
    )
    on_bad_document: Literal["error", "skip"] = Field(
        "error", description="skip: a document that cannot be read is counted and left out"
    )
    max_document_bytes: Size = Field(64 * 2**20, le=2**40, description="a longer document counts as bad")
    take_bytes: Size | None = Field(None, description="read no more than this much training text")

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not NAME_PATTERN.fullmatch(value):
            raise ValueError(f"{value!r} is not a valid name: use letters, digits, '.', '_', '-', at most 64")
        return value

    @property
    def options(self) -> dict[str, Any]:
        """The settings that decide which documents are read, in plain values (part of the fingerprint)."""
        names = ("text_field", "dedup", "held_out", "on_bad_document", "max_document_bytes", "take_bytes")
        messages = {"messages_field": self.messages_field} if self.messages_field else {}
        return {**{name: getattr(self, name) for name in names}, **messages}

    @property
    def reading(self) -> Reading:
        """How its rows are read."""
        field = self.messages_field or self.text_field
        return Reading(field, self.max_document_bytes, messages=self.messages_field is not None)

    @property
    def provenance(self) -> dict[str, str]:
        """Source, licence, citation and revision of the corpus, as far as they are known; no path of this machine."""
        given = {
            "source": self.source.public_name,
            "licence": self.licence,
            "citation": self.citation,
            "revision": getattr(self.source, "revision", None),
        }
        return {key: value for key, value in given.items() if value}


def load_domain(card: str | Path, *, allow_paths: bool = False) -> Domain:
    """The domain of a card, given by name or by path.

    Args:
        card: name or path.
        allow_paths: take what a card from elsewhere names outside of its folder, now and later.

    Raises:
        InputError: no such card, it is wrong, or from elsewhere and names files outside of its folder; every fault of
            the card is in one message.
    """
    text = str(card)
    if text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text:
        path = Path(text).expanduser()
        if not path.is_file():
            raise InputError(f"domain card {text}: no such file{_case_hint(path)}")
        domain = read_card(path)
        if allow_paths:
            allow_card(domain)
        require_own("domain", path, domain.source.outside(domain), domain_folders())
        return domain
    if not NAME_PATTERN.fullmatch(text):
        raise InputError(
            f"{text!r} is not a valid domain name: use letters, digits, '.', '_', '-', at most 64, "
            "or give the path of a card that ends in .yaml"
        )
    for folder in domain_folders():
        for suffix in SUFFIXES:
            path = folder / f"{text}{suffix}"
            if path.is_file():
                domain = read_card(path)
                if domain.name != text:
                    raise InputError(f"{path}: name: the card calls itself {domain.name!r}, not {text!r}")
                return domain
    raise InputError(f"there is no domain {text!r}{did_you_mean(text, known_domains())}")


def allow_card(domain: Domain) -> None:
    """Remember that the user has asked for what the card names outside of its folder."""
    remember_allowed(f"domain card: {name}" for name in domain.source.outside(domain))


def known_domains() -> list[str]:
    """Names of all cards that can be found, in alphabetical order."""
    return sorted(known_cards())


def known_cards() -> dict[str, Path]:
    """The card of every name, as `load_domain` finds it."""
    cards: dict[str, Path] = {}
    for folder in (folder.absolute() for folder in domain_folders() if folder.is_dir()):
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file()]
        for suffix in SUFFIXES:
            for name in names:
                if name.endswith(suffix):
                    cards.setdefault(name.removesuffix(suffix), folder / name)
    return cards


def list_domains() -> list[dict[str, Any]]:
    """Name, kind of source, licence, card and description of every domain that can be found; or its fault."""
    return [_listed(name, path) for name, path in sorted(known_cards().items())]


def _listed(name: str, path: Path) -> dict[str, Any]:
    try:
        data = glance(path)
        domain = Domain.model_validate({"name": name, **data})
        if domain.name != name or "path" in data:
            raise ValueError
    except (*GLANCE_FAULTS, ValidationError, TypeError):  # what is wrong says the reader that knows its lines
        try:
            domain = load_domain(name)
        except LifelongError as error:
            return {"name": name, "fault": str(error)}
    facts = {"source": domain.source.kind, "licence": domain.licence, "card": str(path)}
    return {"name": name, **facts, "description": domain.description}


def domain_folders() -> list[Path]:
    """Folders searched for cards, in order."""
    named = [Path(part) for part in os.environ.get("LIFELONG_DOMAINS", "").split(os.pathsep) if part]
    return [Path("domains"), *named, shipped_folder("domains")]


def read_card(path: Path) -> Domain:
    """Parses and validates one card.

    Raises:
        InputError: with one line per fault: file, line, dotted path, value, what is allowed.
    """
    file = read_yaml(path)
    data, lines = file.data, file.lines
    if not isinstance(data, dict):
        raise InputError(f"{path}: a card is a mapping (name:, source:, ...), this is {shortened(data, 80)}")
    data.setdefault("name", path.stem)
    if "path" in data:
        raise InputError(f"{path}:{lines.get(('path',), 1)}: path: unknown key; files go under source.files")
    try:
        return Domain.model_validate(data).model_copy(update={"path": path.resolve()})
    except ValidationError as error:
        faults = validation_lines(error, Domain, CARD, place=partial(_place, path, lines), keys_at=_keys_at)
        raise InputError("\n".join(faults)) from None


def _place(path: Path, lines: dict[Location, int], location: Location) -> str:
    location = (*location[:1], *location[2:]) if _kind_at(location) else location
    line = next((lines[location[:n]] for n in range(len(location), 0, -1) if location[:n] in lines), 1)
    return f"{path}:{line}: {'.'.join(map(str, location))}"


def _keys_at(location: Location) -> list[str]:
    schema = source_kinds()[_kind_at(location)] if _kind_at(location) else Domain
    return [name for name, field in schema.model_fields.items() if not field.exclude]


def _kind_at(location: Location) -> str:
    """The kind of source, which a validation puts into the path of its keys; empty elsewhere."""
    return str(location[1]) if len(location) > 1 and location[0] == "source" else ""


def _case_hint(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist either"
    cards = sorted(item.name for item in path.parent.glob("*.y*ml"))
    return did_you_mean(path.name, cards) if cards else ""


def domain_schema() -> dict[str, Any]:
    """JSON schema of a card, for editors."""
    schema = Domain.model_json_schema()
    schema["properties"].pop("path")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
