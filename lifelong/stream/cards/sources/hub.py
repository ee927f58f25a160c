"""Data sets of the Hugging Face hub, or of a local folder in its layout, read row by row."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from lifelong.errors import InputError, did_you_mean
from lifelong.stream.cards.document import RawDocument, Reading
from lifelong.stream.cards.paths import CardFile, expand_variables, outside_names, require_inside, require_readable
from lifelong.stream.cards.pieces import CorpusFile
from lifelong.stream.cards.remote import is_remote
from lifelong.stream.cards.sources import Source

_REMOTE = ("hf://", "https://", "http://")
_READ_ALIKE = {".parquet", ".jsonl", ".ndjson"}


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

    @property
    def public_name(self) -> str:
        """The data set on the hub; of a local folder that it is one."""
        return f"hub: {self.hub}" if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.hub) else "local folder"

    def outside(self, card: CardFile) -> Iterator[str]:
        """A local folder by its full path."""
        return outside_names(card, {"hub": [self.hub]})

    @classmethod
    def portable(cls, given: Mapping[str, Any], out: Path) -> dict[str, Any]:
        """Splits are given as lists of one name, a local folder relative to the working folder.

        Raises:
            InputError: several names of one split.
        """
        found = dict(given)
        for key in ("valid", "test"):
            if isinstance(names := found.get(key), list):
                if len(names) != 1:
                    raise InputError(f"--{key}: is the name of one split of the hub data set, not {', '.join(names)}")
                found[key] = names[0]
        folder = Path(found["hub"])
        if folder.is_dir() and not folder.is_absolute():
            whole, home = folder.resolve(), out.resolve()
            found["hub"] = whole.relative_to(home).as_posix() if whole.is_relative_to(home) else str(whole)
        return found

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
            yield place, reading.text(row.get(field), place)

    def files_of(self, card: CardFile) -> list[CorpusFile] | None:
        """Its data files, where they are read as `datasets` would read them: parquet and JSON lines."""
        from lifelong.stream.cards.readers import format_of, is_divisible

        data_files = _builder(card, self).config.data_files or {}
        if self.split not in data_files:  # a slice of a split, or a data set that a script makes
            return None
        names = [str(name) for name in data_files[self.split]]
        paths = [_file(name) for name in names if "::" not in name]  # a member of an archive
        if len(paths) < len(names) or not all(_READ_ALIKE & set(path.suffixes) for path in paths):
            return None
        kinds = [format_of(path) for path in paths]
        return [
            CorpusFile(path, kind, whole=not is_divisible(path, kind, blocks=False))
            for path, kind in zip(paths, kinds, strict=True)
        ]

    def fingerprint(self, card: CardFile, memo_dir: Path | None) -> dict[str, Any]:
        """Values that pin the content: the commit where it is known, else a hash of the local data files."""
        builder = _builder(card, self)
        return {"hub": [self.model_dump(), str(builder.hash or builder.config_id)]}


def _builder(card: CardFile, source: HubSource) -> Any:
    """The builder of the data set, all of whose files are where the card says that it is.

    Raises:
        InputError: it cannot be had, or its own settings (the head of its README.md) name files elsewhere.
    """
    identifier, local = _location(card, source)
    builder = _guarded(card, source, _load_builder(source, identifier))
    place = _place(card, source)
    for files in (builder.config.data_files or {}).values():
        for name in (str(file).rpartition("::")[2] for file in files):  # zip://member::archive
            if not (Path(name).is_relative_to(identifier) if local else name.startswith(_REMOTE)):
                raise InputError(f"{place}: names {name!r} as its data, which is not part of it")
            if local:
                require_readable(Path(name), None if Path(source.hub).is_absolute() else card.folder.resolve(), place)
    return builder


def _file(name: str) -> Any:
    if not is_remote(name):
        return Path(name)
    from upath import UPath

    return UPath(name)


def _location(card: CardFile, source: HubSource) -> tuple[str, bool]:
    """Id on the hub, or a local folder; and which of them it is.

    Raises:
        InputError: `..`, or a link out of the card's folder.
    """
    place = f"{card.path or card.name}: source.hub"
    name = expand_variables(source.hub, place)
    if ".." in Path(name).parts:
        raise InputError(f"{place}: {source.hub!r} must not contain '..'; write the full path")
    folder = card.folder / name  # a full path stays what it is
    if not (folder.is_dir() or name.startswith((".", "/"))):
        return name, False
    if not Path(name).is_absolute():
        require_inside(folder, card.folder.resolve(), f"{place}: {source.hub!r}")
    return str(folder), True


def _load_builder(source: HubSource, identifier: str) -> Callable[[], Any]:
    def load() -> Any:
        from datasets import load_dataset_builder

        return load_dataset_builder(identifier, name=source.config, revision=source.revision)

    return load


def _load(card: CardFile, source: HubSource, split: str) -> Any:
    builder = _builder(card, source)

    def load() -> Any:
        if source.streaming:
            return builder.as_streaming_dataset(split=split)
        builder.download_and_prepare()
        return builder.as_dataset(split=split)

    return _guarded(card, source, load)


def _guarded(card: CardFile, source: HubSource, load: Callable[[], Any]) -> Any:
    try:
        return load()
    # the hub client raises many kinds (OSError, ValueError, its own): all mean that this card cannot be read
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        offline = any(os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
        hint = (
            "; HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set, so only what is in the local cache is found"
            if offline
            else ""
        )
        if _is_gated(error):
            raise InputError(
                f"{_place(card, source)}: is gated on the hub: ask for access on https://huggingface.co/datasets/"
                f"{source.hub}, then log in (hf auth login) or set HF_TOKEN to a token that may read it"
            ) from error
        raise InputError(f"{_place(card, source)}: cannot be loaded: {first}{hint}") from error


def _is_gated(error: BaseException | None) -> bool:
    """Whether the hub refused somebody, in the error or in one that it came from."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if type(error).__name__ == "GatedRepoError" or status in (401, 403) or "gated dataset" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _place(card: CardFile, source: HubSource) -> str:
    parts = [
        source.hub,
        source.config and f"config {source.config}",
        source.revision and f"revision {source.revision}",
    ]
    return f"{card.path or card.name}: source.hub: {', '.join(part for part in parts if part)}"


SOURCE = HubSource
