"""What the templates of both pages are given: tables and their cells, and how a page is put together.

The templates escape every string (jinja2, autoescape); nothing here is HTML.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
SHOWN_ROWS = 200  # of a longer table the newest rows are shown
FOLDED_ROWS = 25  # a longer table is folded away: the page must be readable for a thousand stages


@dataclass(frozen=True)
class Cell:
    """An entry of a table that has more than its text.

    `small` are lines below the text, `tip` is shown under the pointer, `value` is what it is sorted by, `tint` a CSS
    colour, `bar` a share in per cent that is drawn instead of the text, `kind` a class of the style sheet.
    """

    text: str
    small: tuple[str, ...] = ()
    tip: str = ""
    value: float | None = None
    tint: str = ""
    kind: str = ""
    bar: str | None = None

    def attributes(self, sides: str) -> Markup:
        """The attributes of its `td`."""
        names = " ".join(name for name in (sides, self.kind, "bar" if self.bar is not None else "") if name)
        found = {
            "class": names,
            "style": f"background:{self.tint}" if self.tint else "",
            "data-v": "" if self.value is None else repr(self.value),
            "data-tip": self.tip,
        }
        return Markup("").join(Markup(' {}="{}"').format(key, text) for key, text in found.items() if text)


@dataclass(frozen=True)
class Table:
    """A plain table; columns in `left` are left-aligned, column `long` holds sentences.

    `name` is that of the files in which it can be saved; without one it can be neither saved nor sorted. Of thousands
    of rows the newest are kept.
    """

    heads: Sequence[str]
    rows: list[list[str | Cell]]
    left: tuple[int, ...] = (0,)
    long: int = -1
    name: str = ""
    what: str = "rows"
    total: int = 0
    fold: int = FOLDED_ROWS

    @property
    def left_out(self) -> int:
        """Earlier rows that are not shown."""
        return self.total - len(self.rows)

    def side_names(self, index: int) -> str:
        """Classes of the cells of a column."""
        return " ".join(name for name, on in (("left", index in self.left), ("long", index == self.long)) if on)

    def side(self, index: int) -> Markup:
        """The class attribute of a column's cells."""
        names = self.side_names(index)
        return Markup(' class="{}"').format(names) if names else Markup("")


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], **options: Any) -> Table | None:
    """A `Table` of anything that has a text; None without a row, so that a template can leave it out."""
    plain = [[value if isinstance(value, Cell) else str(value) for value in row] for row in rows]
    if not plain:
        return None
    return Table(heads if any(heads) else (), plain[-SHOWN_ROWS:], total=len(plain), **options)


def render(template: str, title: str, **values: Any) -> str:
    """A whole page without network access; its script is named by its hash in the page's policy, no other one runs."""
    style, script = _resources()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found = _environment().get_template(template)
    return found.render(title=title, style=style, script=script, script_hash=f"sha256-{digest}", **values)


@cache
def _resources() -> tuple[Markup, Markup]:
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return Markup(style), Markup(script)  # noqa: S704 - files of our own


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["minus"] = true_minus
    return environment


def true_minus(text: str) -> str:
    """Negative figures with a minus as long as the plus; the script writes it back as a hyphen in what is saved."""
    return re.sub(r"(?<![\w.\-−])-(?=\.?\d)", "−", text)


def markdown_safe(text: str) -> str:
    """A text of somebody else in one cell of a Markdown table: no markup, no link and no image comes of it."""
    escaped = re.sub(r"([\\`\[\]|*])", r"\\\1", " ".join(text.split()))
    return escape(escaped, quote=False)
