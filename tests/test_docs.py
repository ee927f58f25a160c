"""Code of the documentation, as a reader would run it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import lifelong

DOCS = Path(__file__).parents[1] / "docs"


def python_blocks(page: str) -> list[str]:
    """The code blocks of a page, each behind as many empty lines as stand before it: errors name the page's line."""
    text = (DOCS / page).read_text()
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, block.start(1)) + block[1] for block in blocks]


def test_the_page_on_python_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = "how_to/call_from_python.md"
    blocks = python_blocks(page)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses look their module up
    for block in blocks:
        exec(compile(block, page, "exec"), module.__dict__)
    assert len(blocks) == 6
    assert issubclass(module.Plugin, lifelong.Method)
    assert module.losses[0].domain == "sea"


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "api/index.md").read_text()
    documented = re.findall(r"^\.\. auto\w+:: (?:lifelong\.evaluate\.)?(\w+)", text, re.MULTILINE)
    assert sorted(documented) == sorted(set(lifelong.__all__) - {"__version__"})
