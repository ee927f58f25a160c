"""Building blocks of everything that is written in YAML: sections, counts, fractions, and messages about errors."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from lifelong.errors import InputError, did_you_mean

Location = tuple[int | str, ...]


YAML_BYTES, YAML_PIECE = 1 << 20, 1 << 14
YAML_DEPTH = 50
LARGEST_NUMBER = 2**63
# what constructors of PyYAML raise on `2020-13-45`, `!!int abc`, `!!bool abc`, `!!timestamp abc` or 5,000 digits
SCALAR_FAULTS = (ValueError, KeyError, AttributeError, OverflowError)


# nodes are composed in Python, where aliases are seen; events come from the parser in C where PyYAML was built with it
Bases = (yaml.composer.Composer, yaml.CSafeLoader) if yaml.__with_libyaml__ else (yaml.SafeLoader,)


class PlainYaml(*Bases):  # type: ignore[misc]
    """YAML as the standard has it, in files that strangers may have written: bounded, without aliases.

    A value that an alias repeats is one object here, and a tree of exponential size to whoever walks over it.
    """

    depth = 0

    def __init__(self, stream: str) -> None:
        Bases[-1].__init__(self, stream)
        self.anchors: dict[str, yaml.Node] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node of the document.

        Raises:
            yaml.YAMLError: an alias, or more than `YAML_DEPTH` levels.
        """
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed; write the value out", mark)
        if self.depth >= YAML_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"more than {YAML_DEPTH} levels of nesting", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """The value of a node.

        Raises:
            yaml.YAMLError: a scalar that is not what its tag or its form says; a number that no setting can have.
        """
        try:
            value = super().construct_object(node, deep)
        except SCALAR_FAULTS:
            raise _no_value(node) from None
        if isinstance(value, bytes | set) or (isinstance(value, int) and abs(value) >= LARGEST_NUMBER):
            raise _no_value(node)
        return value


def _no_value(node: Any) -> yaml.YAMLError:
    kind, value = node.tag.rpartition(":")[2], shortened(node.value, 40) if node.id == "scalar" else f"a {node.id}"
    return yaml.constructor.ConstructorError(None, None, f"{value} cannot be used as {kind}", node.start_mark)


class Yaml(PlainYaml):
    """YAML as people write it: `on:` is a key and no truth value, `5e-4` is a number."""


Yaml.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)?(?:\.[0-9_]*)?(?:(?<=[0-9.])[eE][-+]?[0-9]+)?$(?<=[0-9.])(?<!^[-+.])"),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class YamlFile:
    """Plain values, and the line of every key by its path."""

    data: Any
    lines: dict[Location, int]


def read_yaml(path: Path, loader: type[PlainYaml] = PlainYaml) -> YamlFile:
    """A YAML file, of at most `YAML_BYTES` bytes.

    Raises:
        InputError: it cannot be read, is too long or not YAML; with file and line.
    """
    try:
        content = _at_most(path)
    except OSError as error:
        raise InputError(f"{shortened(str(path), 200)}: cannot be read ({error.strerror})") from None
    if len(content) > YAML_BYTES:
        raise InputError(f"{path}: is larger than {YAML_BYTES:,} bytes; no such file has to be")
    try:
        return parse_yaml(content.decode("utf-8"), str(path), loader)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from None


def _at_most(path: Path) -> bytes:
    with path.open("rb") as stream:
        content = stream.read(YAML_PIECE)  # room for all that may be read is made before it is
        return content if len(content) < YAML_PIECE else content + stream.read(YAML_BYTES + 1 - YAML_PIECE)


def glance(path: Path) -> dict[str, Any]:
    """A YAML mapping in half the time of `read_yaml`, for thousands of files: composed in C, repeats by alias shared.

    Raises:
        OSError, ValueError, RecursionError, yaml.YAMLError: it is none; `read_yaml` says where.
    """
    content = _at_most(path)
    data = yaml.load(content.decode("utf-8"), Bases[-1])  # noqa: S506 - a safe loader
    if len(content) > YAML_BYTES or not isinstance(data, dict):
        raise ValueError(path)
    return data


GLANCE_FAULTS = (OSError, RecursionError, yaml.YAMLError, *SCALAR_FAULTS)


def parse_yaml(text: str, where: str, loader: type[PlainYaml] = PlainYaml) -> YamlFile:
    """One YAML document.

    Args:
        text: of the document.
        where: it stands, for messages.
        loader: how scalars are read.

    Raises:
        InputError: it is not YAML, or not of the plain kind that is read here.
    """
    try:
        made = loader(text)
        node = made.get_single_node()
        return YamlFile(None if node is None else made.construct_document(node), _lines_of_keys(node))
    except UnicodeEncodeError as error:  # of the command line, where what is no UTF-8 comes as surrogates
        raise InputError(f"{where}: is not UTF-8 ({error.reason} at character {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        # the reader in C finds what is missing at the end on the line after the last
        line = f":{min(mark.line + 1, len(text.rstrip().splitlines()) or 1)}" if mark else ""
        raise InputError(f"{where}{line}: not valid YAML: {problem}") from None


def _lines_of_keys(node: Any, prefix: Location = ()) -> dict[Location, int]:
    lines: dict[Location, int] = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            lines[(*prefix, key.value)] = key.start_mark.line + 1
            lines.update(_lines_of_keys(value, (*prefix, key.value)))
    for index, value in enumerate(node.value if isinstance(node, yaml.SequenceNode) else ()):
        lines[(*prefix, index)] = value.start_mark.line + 1
        lines.update(_lines_of_keys(value, (*prefix, index)))
    return lines


class Origin:
    """Where something was written: its file and the line of every key. Takes no part in what it says.

    Args:
        path: of the file; empty where there is none.
        lines: line of every key that stands in that file, by its path.
    """

    def __init__(self, path: str = "", lines: Mapping[Location, int] | None = None) -> None:
        self.path = path
        self._lines = {tuple(map(str, location)): line for location, line in (lines or {}).items()}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Origin)

    __hash__ = None  # type: ignore[assignment]

    def numbered(self, message: str) -> str:
        """A message `a.b[0].c: ...` with the line of that key in front; as it is where nobody wrote the key there."""
        place = re.match(r"[\w.\[\]-]+(?=: )", message)
        parts = tuple(re.findall(r"[\w-]+", place[0])) if place else ()
        line = self._lines.get(parts)
        if line is None and message.endswith(": is missing"):
            line = self._lines.get(parts[:-1])
        return message if line is None else f"line {line}: {message}"


MULTIPLIERS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000, "t": 1_000_000_000_000}


def parse_count(value: object) -> object:
    """`2M` -> 2000000; whole numbers pass; anything else is left for the type check to refuse."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kKmMbBtT]?)\s*", value)
        if match:
            number = float(match[1].replace("_", "")) * MULTIPLIERS[match[2].lower()]
            if number == int(number):
                return int(number)
    return value


def expand_variables(text: str) -> str:
    """`$LIFELONG_DATA/x` with the variable's value.

    Raises:
        ValueError: the variable is not set.
    """
    expanded = os.path.expandvars(text)
    if match := re.search(r"\$\{?(\w+)", expanded):
        raise ValueError(f"the environment variable {match[1]} in {text!r} is not set")
    return expanded


def parse_fraction(value: object) -> object:
    """`2%` -> 0.02; numbers pass."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9.]+)\s*%\s*", value)):
        return float(match[1]) / 100
    return value


RANGES = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


UNNAMED = "constrained-"
"""Begins parts of a path that pydantic adds to name the form of a value, and that nobody has written."""


class Written:
    """A value that may also be written as a text of this pattern, for the JSON schema, which knows no validator.

    Args:
        pattern: of the text, as JSON schema knows patterns.
        example: such a text.
    """

    def __init__(self, pattern: str, example: str) -> None:
        self.text = {"type": "string", "pattern": pattern, "examples": [example]}

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        """The schema of the value, with its range in the words of JSON schema, or of the text."""
        value = {RANGES.get(key, key): content for key, content in handler(core_schema).items()}
        return {"anyOf": [value, self.text]}


COUNT = Written(r"^\s*[0-9][0-9_]*(\.[0-9]+)?\s*[kKmMbBtT]?\s*$", "2M")
PER_CENT = Written(r"^\s*[0-9.]+\s*%\s*$", "2%")

Count = Annotated[int, BeforeValidator(parse_count), Field(ge=0), COUNT]


PositiveCount = Annotated[int, BeforeValidator(parse_count), Field(ge=1), COUNT]


Fraction = Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, le=1), PER_CENT]


Size = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of a recipe or card: unknown keys are errors, values are never coerced from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        """The schema with a description of every key that the docstring names under `Attributes:`."""
        schema: dict[str, Any] = handler(core_schema)
        target = handler.resolve_ref_schema(schema)
        text = inspect.getdoc(cls) or ""
        target["description"] = " ".join(text.split("\n\n")[0].split())
        for key, described in attribute_docs(text).items():
            if key in target.get("properties", {}):
                target["properties"][key].setdefault("description", described)
        return schema

    @classmethod
    def known_keys(cls) -> dict[str, FieldInfo]:
        """Keys that may be written in a section."""
        return cls.model_fields


def attribute_docs(docstring: str) -> dict[str, str]:
    """Key -> description of the `Attributes:` section of a docstring."""
    _, found, section = docstring.partition("Attributes:\n")
    docs: dict[str, str] = {}
    key = ""
    for line in section.splitlines() if found else ():
        if not line.strip() or not line.startswith("    "):
            break
        if match := re.match(r"    (\w+): (.*)", line):
            key, docs[match[1]] = match[1], match[2]
        elif key:
            docs[key] += f" {line.strip()}"
    return docs


@dataclass(frozen=True)
class Wording:
    """Wording of the errors of a kind of file.

    Args:
        missing: said of a key that is not there.
        given: clause around the value found.
        longest: characters of a value that are shown.
        complete: types of errors whose message shows the value itself.
    """

    missing: str
    given: str
    longest: int
    complete: frozenset[str]


RECIPE = Wording("is missing", ", not {}", 60, frozenset({"value_error"}))
CARD = Wording("missing; a card needs it", "; given: {}", 80, frozenset({"source_kind"}))


def validation_lines(
    error: ValidationError,
    schema: type[BaseModel],
    wording: Wording = RECIPE,
    *,
    place: Callable[[Location], str] | None = None,
    keys_at: Callable[[Location], list[str]] | None = None,
) -> list[str]:
    """One line for every error of a validation: where, what is wrong, the nearest valid name.

    Args:
        error: of the validation.
        schema: what was validated against.
        wording: of the kind of file.
        place: how a path is written; dotted if absent.
        keys_at: the keys that are allowed in the section of a path; those of `schema` if absent.
    """
    place = place or _path
    keys_at = keys_at or partial(_fields_at, schema)
    return [f"{place(item['loc'])}: {_explain(item, keys_at, wording)}" for item in error.errors()]


def _path(location: Location) -> str:
    dotted = ""
    for part in location:
        if isinstance(part, int):
            dotted += f"[{part}]"
        elif not part.startswith(("literal[", "function-", UNNAMED)):
            dotted += f".{part}" if dotted else part
    return dotted or "recipe"


def _explain(item: ErrorDetails, keys_at: Callable[[Location], list[str]], wording: Wording) -> str:
    location, kind = item["loc"], item["type"]
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(location[-1]), keys_at(location[:-1]))}"
    if kind == "missing":
        return wording.missing
    message = item["msg"].removeprefix("Value error, ")
    shown = "" if kind in wording.complete else wording.given.format(shortened(item["input"], wording.longest))
    return f"{message[:1].lower()}{message[1:]}{shown}"


def shortened(value: object, longest: int) -> str:
    """A value as Python writes it, in at most `longest` characters."""
    text = repr(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _fields_at(schema: type[BaseModel], location: Location) -> list[str]:
    """Names of the keys that are allowed at a path."""
    model: type[BaseModel] | None = schema
    for part in location:
        if isinstance(part, str) and model is not None and part in (known := _known_keys(model)):
            model = _section_of(known[part].annotation)
    return [name for name, key in _known_keys(model).items() if not key.exclude] if model is not None else []


def _known_keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return model.known_keys() if issubclass(model, Section) else model.model_fields


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) is None:
        return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return next((found for argument in get_args(annotation) if (found := _section_of(argument)) is not None), None)
