"""Data sets of the Hugging Face hub, or of a local folder in its layout, read row by row."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lifelong.errors import InputError, did_you_mean
from lifelong.stream.cards.domain import Domain, HubSource
from lifelong.stream.cards.paths import expand_variables
from lifelong.stream.cards.readers import Bad, RawDocument


def read_hub(domain: Domain, source: HubSource, split: str) -> Iterator[RawDocument]:
    """(place, text or Bad) of every row of a split.

    Raises:
        InputError: the data set, its config, revision, split or column is not there, or the hub cannot be
            reached.
    """
    rows = _load(domain, source, split)
    names = rows.column_names
    if names is not None:
        if domain.text_field not in names:
            hint = did_you_mean(domain.text_field, names)
            raise InputError(
                f"{_place(domain, source)}: there is no column {domain.text_field!r}{hint}; set text_field"
            )
        rows = rows.select_columns([domain.text_field])
    for number, row in enumerate(rows):
        place = f"{source.hub}[{split}] row {number}"
        value = row.get(domain.text_field)
        fine = isinstance(value, str)
        yield (
            place,
            value if fine else Bad(f"{place}: {domain.text_field}: no text but {type(value).__name__}"),
        )


def hub_revision(domain: Domain, source: HubSource) -> str:
    """What pins the content: the commit where it is known, else a hash of the local data files."""
    builder = _guarded(domain, source, _builder)
    return str(builder.hash or builder.config_id)


def _builder(source: HubSource, identifier: str) -> Any:
    from datasets import load_dataset_builder

    return load_dataset_builder(identifier, name=source.config, revision=source.revision)


def _load(domain: Domain, source: HubSource, split: str) -> Any:
    def load(source: HubSource, identifier: str) -> Any:
        from datasets import load_dataset

        return load_dataset(
            identifier, name=source.config, revision=source.revision, split=split, streaming=source.streaming
        )

    return _guarded(domain, source, load)


def _guarded(domain: Domain, source: HubSource, load: Any) -> Any:
    identifier = expand_variables(source.hub, f"{domain.path or domain.name}: source.hub")
    local = Path(identifier).is_dir() or identifier.startswith((".", "/", "~"))
    if local and not Path(identifier).is_absolute():
        identifier = str(domain.folder / identifier)
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
        raise InputError(f"{_place(domain, source)}: cannot be loaded: {first}{hint}") from error


def _place(domain: Domain, source: HubSource) -> str:
    parts = [
        source.hub,
        source.config and f"config {source.config}",
        source.revision and f"revision {source.revision}",
    ]
    return f"{domain.path or domain.name}: source.hub: {', '.join(part for part in parts if part)}"
