"""Data sets of the Hugging Face hub, or of a local folder in its layout, read row by row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from lifelong.errors import InputError, did_you_mean
from lifelong.stream.cards.document import Bad, RawDocument, Reading
from lifelong.stream.cards.paths import CardFile, expand_variables
from lifelong.stream.cards.sources import Source


class HubSource(Source):
    """A data set of the Hugging Face hub, or a local folder in its layout."""

    title: ClassVar[str] = "a hub data set"
    remote: ClassVar[str] = "its text is on the hub"

    hub: str = Field(min_length=1, description="org/name on the hub, or a local folder of data files")
    config: str | None = None
    revision: str | None = Field(None, description="commit hash or tag; unpinned if absent")
    split: str = "train"
    valid: str | None = Field(None, description="name of the validation split; cut by hash if absent")
    test: str | None = Field(None, description="name of the test split; cut by hash if absent")
    streaming: bool = False

    def read(self, card: CardFile, split: str, reading: Reading) -> Iterator[RawDocument]:
        """(place, text or Bad) of every row of a split.

        Raises:
            InputError: the data set, its config, revision, split or column is not there, or the hub cannot be
                reached.
        """
        name: str = self.split if split == "train" else getattr(self, split)
        field = reading.text_field
        rows = _load(card, self, name)
        columns = rows.column_names
        if columns is not None:
            if field not in columns:
                hint = did_you_mean(field, columns)
                raise InputError(f"{_place(card, self)}: there is no column {field!r}{hint}; set text_field")
            rows = rows.select_columns([field])
        for number, row in enumerate(rows):
            place = f"{self.hub}[{name}] row {number}"
            value = row.get(field)
            fine = isinstance(value, str)
            yield place, value if fine else Bad(f"{place}: {field}: no text but {type(value).__name__}")

    def fingerprint(self, card: CardFile, memo_dir: Path | None) -> dict[str, Any]:
        """Values that pin the content: the commit where it is known, else a hash of the local data files."""
        builder = _guarded(card, self, _builder)
        return {"hub": [self.model_dump(), str(builder.hash or builder.config_id)]}


def _builder(source: HubSource, identifier: str) -> Any:
    from datasets import load_dataset_builder

    return load_dataset_builder(identifier, name=source.config, revision=source.revision)


def _load(card: CardFile, source: HubSource, split: str) -> Any:
    def load(source: HubSource, identifier: str) -> Any:
        from datasets import load_dataset

        return load_dataset(
            identifier, name=source.config, revision=source.revision, split=split, streaming=source.streaming
        )

    return _guarded(card, source, load)


def _guarded(card: CardFile, source: HubSource, load: Any) -> Any:
    identifier = expand_variables(source.hub, f"{card.path or card.name}: source.hub")
    local = Path(identifier).is_dir() or identifier.startswith((".", "/", "~"))
    if local and not Path(identifier).is_absolute():
        identifier = str(card.folder / identifier)
    try:
        return load(source, identifier)
    # the hub client raises many kinds (OSError, ValueError, its own): all mean that this card cannot be read
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        offline = any(os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
        hint = (
            "; HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set, so only what is in the local cache is found"
            if offline
            else ""
        )
        raise InputError(f"{_place(card, source)}: cannot be loaded: {first}{hint}") from error


def _place(card: CardFile, source: HubSource) -> str:
    parts = [
        source.hub,
        source.config and f"config {source.config}",
        source.revision and f"revision {source.revision}",
    ]
    return f"{card.path or card.name}: source.hub: {', '.join(part for part in parts if part)}"


SOURCE = HubSource
