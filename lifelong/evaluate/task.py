"""Task cards: one YAML file names one small labelled task, as a domain card names a corpus.

A card is looked up by name in `./tasks`, then in the folders of `$LIFELONG_TASKS`, then among the shipped ones; a
path to a YAML file works everywhere a name does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from lifelong.errors import InputError, UnknownNameError
from lifelong.plugins import shipped_folder
from lifelong.schema import CARD, Section, read_yaml, validation_lines
from lifelong.stream.cards.document import Bad, Reading
from lifelong.stream.cards.paths import CardFile, Patterns, expand_patterns, outside_names, require_own
from lifelong.stream.cards.readers import format_of, read_file

SPLITS = ("train", "dev", "test")
MAX_DOCUMENT_BYTES = 1 << 20


class TaskSource(Section):
    """Files of each split by glob pattern, relative to the card; `$VARIABLES` are expanded."""

    train: Patterns
    dev: Patterns
    test: Patterns


class Task(CardFile):
    """A labelled task. `domain` names the corpus it belongs to, whose prompt is the right one."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    source: TaskSource
    text_field: str = "text"
    label_field: str = "label"
    domain: str = Field(description="the domain the task belongs to")
    licence: str | None = None
    citation: str | None = None
    description: str | None = None


@dataclass(frozen=True)
class Examples:
    """Texts and labels of one split; how many it holds altogether, and all its classes, also those not taken."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    available: int
    classes: frozenset[str]


def load_task(card: str | Path) -> Task:
    """The task of a card, given by name or by path.

    Raises:
        InputError: no such card, or it is wrong; every fault of the card is in one message.
    """
    text = str(card)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        if not Path(text).is_file():
            raise InputError(f"task card {text}: no such file")
        task = _read_card(Path(text))
        require_own("task", Path(text), outside_names(task, task.source.model_dump()), task_folders())
        return task
    return _read_card(task_file(text))


def task_file(name: str) -> Path:
    """The card of a name.

    Raises:
        InputError: there is none.
    """
    for folder in task_folders():
        if (path := folder / f"{name}.yaml").is_file():
            return path
    raise UnknownNameError("task", name, known_tasks())


def known_tasks() -> list[str]:
    """Names of all cards that can be found, in alphabetical order."""
    return sorted({path.stem for folder in task_folders() for path in folder.glob("*.yaml")})


def task_folders() -> list[Path]:
    """Folders searched for cards, in order."""
    named = [Path(part) for part in os.environ.get("LIFELONG_TASKS", "").split(os.pathsep) if part]
    return [folder for folder in (Path("tasks"), *named, shipped_folder("tasks")) if folder.is_dir()]


def _read_card(path: Path) -> Task:
    data = read_yaml(path).data
    if not isinstance(data, dict) or "path" in data:
        raise InputError(f"{path}: a card is a mapping with the keys {', '.join(_keys())}")
    data.setdefault("name", path.stem)
    try:
        return Task.model_validate(data).model_copy(update={"path": path.resolve()})
    except ValidationError as error:
        lines = validation_lines(error, Task, CARD, place=lambda location: f"{path}: {'.'.join(map(str, location))}")
        raise InputError("\n".join(lines)) from None


def _keys() -> list[str]:
    return [name for name in Task.model_fields if name != "path"]


def read_examples(task: Task, split: str, limit: int | None = None) -> Examples:
    """Texts and labels of a split, in order, the first `limit` of them.

    Raises:
        InputError: a file or a row cannot be read, with its place; or the split is empty.
    """
    assert task.path is not None, "a card is read from a file"
    texts: list[str] = []
    labels: list[str] = []
    for path in _files(task, split):
        kind = format_of(path)
        rows = (
            read_file(path, kind, Reading(field, MAX_DOCUMENT_BYTES)) for field in (task.text_field, task.label_field)
        )
        for (_, text), (place, label) in zip(*rows, strict=True):
            for value in (text, label):
                if isinstance(value, Bad):
                    raise InputError(f"task {task.name}: {value.reason} (texts and labels are strings; {place})")
            texts.append(str(text))
            labels.append(str(label))
    if not texts:
        raise InputError(f"task {task.name}: its {split} split holds no example")
    kept = len(texts) if limit is None else limit
    return Examples(tuple(texts[:kept]), tuple(labels[:kept]), len(texts), frozenset(labels))


def _files(task: Task, split: str) -> Sequence[Path]:
    patterns: tuple[str, ...] = getattr(task.source, split)
    return expand_patterns(task, patterns, f"source.{split}")
