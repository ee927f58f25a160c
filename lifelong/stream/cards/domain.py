"""Domain cards: one YAML file names one corpus. Reading a card loads none of the heavy libraries.

A card is looked up by name in `./domains`, then in the folders of `$LIFELONG_DOMAINS`, then among the
shipped ones; a path to a YAML file works everywhere a name does.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator

from lifelong.errors import InputError, did_you_mean
from lifelong.plugins import shipped_folder

SPLITS = ("train", "valid", "test")
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PythonTextKind = Literal["reference_prose", "stdlib_code", "licence_texts"]

_SIZE_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_size(value: Any) -> Any:
    """`100MB`, `64 MiB`, `2k` or a plain number as bytes; anything else is returned for the validator."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", value.lower())
        if match and (match[2] or "") in _SIZE_UNITS:
            return int(float(match[1]) * _SIZE_UNITS[match[2] or ""])
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
Patterns = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class FileSource(_Part):
    """Local files by glob pattern; paths are relative to the card, `$VARIABLES` are expanded."""

    files: Patterns = Field(description="files of the training split")
    valid: Patterns | None = Field(None, description="files of the validation split; cut by hash if absent")
    test: Patterns | None = Field(None, description="files of the test split; cut by hash if absent")
    format: Literal["jsonl", "parquet", "csv", "tsv", "text"] | None = Field(None, description="by file name if absent")
    documents: Literal["file", "blocks"] | None = Field(
        None,
        description="plain text only: a whole file or a blank-line block is one document; "
        "if absent, blocks when one file matches, else file",
    )


class HubSource(_Part):
    """A data set of the Hugging Face hub, or a local folder in its layout."""

    hub: str = Field(min_length=1, description="org/name on the hub, or a local folder of data files")
    config: str | None = None
    revision: str | None = Field(None, description="commit hash or tag; unpinned if absent")
    split: str = "train"
    valid: str | None = Field(None, description="name of the validation split; cut by hash if absent")
    test: str | None = Field(None, description="name of the test split; cut by hash if absent")
    streaming: bool = False


class PythonTextSource(_Part):
    """Real text that is installed together with Python."""

    python_text: PythonTextKind


def _source_kind(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", {})
    kinds = [kind for kind in ("files", "hub", "python_text") if kind in keys]
    return kinds[0] if len(kinds) == 1 else None


Source = Annotated[
    Annotated[FileSource, Tag("files")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[PythonTextSource, Tag("python_text")],
    Discriminator(_source_kind),
]
_SOURCE_FIELDS = {
    "files": FileSource.model_fields,
    "hub": HubSource.model_fields,
    "python_text": PythonTextSource.model_fields,
}


class Domain(_Part):
    """A named corpus. `path` is the card it was read from, the folder of relative paths."""

    name: str = Field(description="letters, digits, '.', '_' and '-'; at most 64")
    source: Source
    text_field: str = Field("text", min_length=1, description="the field or column that holds the text")
    licence: str | None = None
    citation: str | None = None
    description: str | None = None
    dedup: Literal["none", "exact", "near"] = Field(
        "none", description="drop repeated documents of the training split, and those that are held out"
    )
    held_out: float = Field(
        0.05, gt=0.0, lt=0.5, description="share of documents for each split that has to be cut by hash"
    )
    on_bad_document: Literal["error", "skip"] = Field(
        "error", description="skip: a document that cannot be read is counted and left out"
    )
    max_document_bytes: Size = Field(64 * 2**20, description="a longer document counts as bad")
    take_bytes: Size | None = Field(None, description="read no more than this much training text")
    path: Path | None = Field(None, exclude=True)

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not NAME_PATTERN.fullmatch(value):
            raise ValueError(f"{value!r} is no name: use letters, digits, '.', '_', '-', at most 64")
        return value

    @property
    def options(self) -> dict[str, Any]:
        """The settings that decide which documents are read, in plain values (part of the fingerprint)."""
        names = ("text_field", "dedup", "held_out", "on_bad_document", "max_document_bytes", "take_bytes")
        return {name: getattr(self, name) for name in names}

    @property
    def folder(self) -> Path:
        """What relative paths of the card are relative to."""
        return self.path.parent if self.path else Path()


def load_domain(card: str | Path) -> Domain:
    """The domain of a card, given by name or by path.

    Raises:
        InputError: there is no such card, or it is wrong; every fault of the card is in one message.
    """
    text = str(card)
    if text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text:
        path = Path(text).expanduser()
        if not path.is_file():
            raise InputError(f"domain card {text}: there is no such file{_case_hint(path)}")
        return read_card(path)
    if not NAME_PATTERN.fullmatch(text):
        raise InputError(
            f"{text!r} is no name of a domain: use letters, digits, '.', '_', '-', at most 64, "
            "or give the path of a card that ends in .yaml"
        )
    for folder in domain_folders():
        for suffix in (".yaml", ".yml"):
            path = folder / f"{text}{suffix}"
            if path.is_file():
                domain = read_card(path)
                if domain.name != text:
                    raise InputError(f"{path}: name: the card calls itself {domain.name!r}, not {text!r}")
                return domain
    raise InputError(f"there is no domain {text!r}{did_you_mean(text, known_domains())}")


def known_domains() -> list[str]:
    """Names of all cards that can be found, in alphabetical order."""
    folders = [folder for folder in domain_folders() if folder.is_dir()]
    return sorted({path.stem for folder in folders for path in folder.glob("*.y*ml")})


def domain_folders() -> list[Path]:
    """Where cards are looked for, in order."""
    named = [Path(part) for part in os.environ.get("LIFELONG_DOMAINS", "").split(os.pathsep) if part]
    return [Path("domains"), *named, shipped_folder("domains")]


def read_card(path: Path) -> Domain:
    """Parses and validates one card.

    Raises:
        InputError: with one line per fault: file, line, dotted path, value, what is allowed.
    """
    import yaml
    from pydantic import ValidationError

    try:
        text = path.read_text(encoding="utf-8")
        data, lines = yaml.safe_load(text), _lines_of_keys(yaml.compose(text, Loader=yaml.SafeLoader))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the card is not UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise InputError(f"{path}: the card cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{place}: no valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: a card is a mapping (name:, source:, ...), this is {_shown(data)}")
    data.setdefault("name", path.stem)
    if "path" in data:
        raise InputError(f"{path}:{lines.get(('path',), 1)}: path: unknown key; files go under source.files")
    try:
        return Domain.model_validate(data).model_copy(update={"path": path.resolve()})
    except ValidationError as error:
        faults = [_fault(path, dict(item), data, lines) for item in error.errors(include_url=False)]
        raise InputError("\n".join(faults)) from None


def _fault(path: Path, item: dict[str, Any], data: dict[str, Any], lines: dict[tuple[Any, ...], int]) -> str:
    location = list(item["loc"])
    kind = None
    if len(location) > 1 and location[0] == "source" and location[1] in _SOURCE_FIELDS:
        kind = location.pop(1)
    line = next((lines[tuple(location[:n])] for n in range(len(location), 0, -1) if tuple(location[:n]) in lines), 1)
    place = f"{path}:{line}: {'.'.join(map(str, location))}"
    if item["type"] == "extra_forbidden":
        allowed = _SOURCE_FIELDS[kind] if kind else [name for name in Domain.model_fields if name != "path"]
        return f"{place}: unknown key{did_you_mean(str(location[-1]), allowed)}"
    if item["type"] == "missing":
        return f"{place}: missing; a card needs it"
    if item["type"].startswith("union_tag"):
        given = ", ".join(map(str, data["source"])) if isinstance(data["source"], dict) else _shown(data["source"])
        close = did_you_mean(given, _SOURCE_FIELDS)
        return f"{place}: exactly one of files, hub, python_text says where the text is; given: {given}{close}"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{place}: {message[:1].lower()}{message[1:]}; given: {_shown(item['input'])}"


def _lines_of_keys(node: Any, prefix: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], int]:
    lines: dict[tuple[Any, ...], int] = {}
    if node is not None and node.id == "mapping":
        for key, value in node.value:
            lines[(*prefix, key.value)] = key.start_mark.line + 1
            lines.update(_lines_of_keys(value, (*prefix, key.value)))
    return lines


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


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
