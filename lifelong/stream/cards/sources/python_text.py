"""Real text that is installed with Python: data for a first run without a download.

- `reference_prose`: the language reference that `help()` shows (`pydoc_data`), one section a document
- `stdlib_code`: the source of the standard library, one module a document
- `licence_texts`: the licence files of the installed distributions, one file a document

Documents come in an order by hash, so that any beginning of the stream is a fair sample of it.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sysconfig
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import ClassVar, Literal

from lifelong.errors import InputError
from lifelong.stream.cards.document import RawDocument, Reading
from lifelong.stream.cards.paths import CardFile
from lifelong.stream.cards.sources import Source

# tests and generated tables are not prose; pydoc_data is the other domain
_LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "encodings",
    "pydoc_data",
    "lib2to3",
}
_LICENCE_NAME = re.compile(r"(licen[cs]e|copying|notice|copyright|eula)", re.IGNORECASE)
_NO_TEXT = (".py", ".pyc", ".so", ".json", ".pdf", ".html", ".js", ".h", ".png", ".toml")
_HEADING = re.compile(r"\n\n(?=[^\n]+\n(?:\*{3,}|={3,}|-{3,})\n)")
_FEWEST_CHARACTERS = 200


class PythonTextSource(Source):
    """Real text that is installed together with Python."""

    title: ClassVar[str] = "a kind of python text"

    python_text: Literal["reference_prose", "stdlib_code", "licence_texts"]

    @property
    def public_name(self) -> str:
        """Where every reader has it too."""
        return "installed with Python"

    def read(self, card: CardFile, split: str, reading: Reading) -> Iterator[RawDocument]:
        """(place, text) of every document.

        Raises:
            InputError: this Python was installed without that text.
        """
        yield from read_installed(self.python_text)


@lru_cache(maxsize=3)
def read_installed(kind: str) -> tuple[tuple[str, str], ...]:
    """(place, text) of every document of `kind`, each text once; some 10 MB, kept once read.

    Raises:
        InputError: this Python was installed without that text.
    """
    texts: dict[str, tuple[str, str]] = {}
    for place, text in _KINDS[kind]():
        if len(text) >= _FEWEST_CHARACTERS:
            texts.setdefault(hashlib.blake2b(text.encode("utf-8", "replace")).hexdigest(), (place, text))
    if not texts:
        raise InputError(f"python_text: {kind}: this Python was installed without it")
    return tuple(document for _, document in sorted(texts.items()))


def _reference_prose() -> Iterator[tuple[str, str]]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return
    for name, text in topics.items():
        for number, section in enumerate(_HEADING.split(text), 1):
            yield f"pydoc_data.topics[{name!r}] section {number}", section.strip() + "\n"


def _stdlib_code() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not _LEFT_OUT.intersection(path.relative_to(root).parts):
            text = _text_of(path)
            if text is not None:
                yield str(path), text


def _licence_texts() -> Iterator[tuple[str, str]]:
    for distribution in metadata.distributions():
        for file in distribution.files or ():
            if _LICENCE_NAME.search(file.name) and not file.name.lower().endswith(_NO_TEXT):
                text = _text_of(Path(str(distribution.locate_file(file))))
                if text is not None:
                    yield f"{distribution.metadata['Name']}: {file}", text


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


_KINDS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "reference_prose": _reference_prose,
    "stdlib_code": _stdlib_code,
    "licence_texts": _licence_texts,
}


SOURCE = PythonTextSource
