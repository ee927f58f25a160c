"""Kinds of sources: where the text of a domain card is. One file per kind; the folder is the registry.

`files.py` is the kind of a card that says `source: {files: ...}`. Such a module holds one class, `SOURCE`: a `Source`
whose fields are the keys of the section and the options of `lifelong domain add`, among them the kind's own name. It is
imported whenever a card is read, so heavy libraries are imported inside functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Union

from pydantic import BeforeValidator, Discriminator, GetPydanticSchema, Tag
from pydantic_core import PydanticCustomError

from lifelong.errors import did_you_mean
from lifelong.plugins import load_plugin, plugin_names
from lifelong.schema import Section, shortened
from lifelong.stream.cards.document import RawDocument, Reading
from lifelong.stream.cards.paths import CardFile
from lifelong.stream.cards.pieces import CorpusFile

PACKAGE = "lifelong.stream.cards.sources"


class Source(Section):
    """The `source` section of a card.

    Attributes:
        title: what the kind is called where exactly one has to be given.
        remote: why a plan and a comparison of corpora leave this text unread; empty where it is on this machine.
    """

    title: ClassVar[str]
    remote: ClassVar[str] = ""

    @property
    def kind(self) -> str:
        """The name of the kind: of its file, and of the key that tells it from the others."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def public_name(self) -> str:
        """What readers of a report may know of where the text is: its kind, and what is public of it."""
        return self.title.removeprefix("a ")

    @property
    def own_splits(self) -> frozenset[str]:
        """The splits that the source names; the others are cut from train by document hash."""
        return frozenset({"train", *(split for split in ("valid", "test") if getattr(self, split, None))})

    def outside(self, card: CardFile) -> Iterator[str]:
        """What the section names outside of the folder of the card, each behind its key."""
        return iter(())

    def read(self, card: CardFile, split: str, reading: Reading) -> Iterator[RawDocument]:
        """(place, text or Bad) of every document of one of its own splits.

        Raises:
            InputError: the text is not there or cannot be read.
        """
        raise NotImplementedError

    def files_of(self, card: CardFile) -> list[CorpusFile] | None:
        """Files of the training split, whose parts `read_range` can read; None where only `read` knows how."""
        return None

    def reading_of(self, card: CardFile, reading: Reading) -> Reading:
        """Reading options of these files."""
        return reading

    def fingerprint(self, card: CardFile, memo_dir: Path | None) -> dict[str, Any] | None:
        """Values that pin the content of all splits, in JSON; None has the documents themselves hashed.

        Args:
            card: the card around the section.
            memo_dir: where digests may be kept, so that an unchanged file is not read again.
        """
        return None

    def num_bytes(self, card: CardFile) -> float | None:
        """An estimate of the training text in bytes without reading it; None where there is none."""
        return None

    @classmethod
    def portable(cls, given: Mapping[str, Any], out: Path) -> dict[str, Any]:
        """The options of `domain add` as a card in the folder `out` has to state them."""
        return dict(given)


def source_kinds() -> dict[str, type[Source]]:
    """The class of every kind, by name."""
    return {
        name.replace("-", "_"): load_plugin(PACKAGE, name, kind="kind of source").SOURCE
        for name in plugin_names(PACKAGE)
    }


def _kind_of(kinds: Iterable[str], value: Any) -> str | None:
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", {})
    named = [kind for kind in kinds if kind in keys]
    return named[0] if len(named) == 1 else None


def _names_one_kind(kinds: Sequence[str], value: Any) -> Any:
    if _kind_of(kinds, value) is None:
        given = ", ".join(map(str, value)) if isinstance(value, dict) else shortened(value, 80)
        message = (
            f"exactly one of {', '.join(kinds)} says where the text is; given: {given}{did_you_mean(given, kinds)}"
        )
        raise PydanticCustomError("source_kind", "{message}", {"message": message})
    return value


def _any_kind() -> Any:
    kinds = source_kinds()  # once for the model of a card: thousands of cards are listed
    members = tuple(Annotated[source, Tag(kind)] for kind, source in kinds.items())
    named = BeforeValidator(lambda value: _names_one_kind(list(kinds), value))
    return Annotated[Union[members], Discriminator(lambda value: _kind_of(kinds, value)), named]  # noqa: UP007


AnySource = Annotated[Source, GetPydanticSchema(lambda _, handler: handler(_any_kind()))]
