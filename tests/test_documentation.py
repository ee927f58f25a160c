"""What the documentation says of the code is there: layers, and the files it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("docs/design/*.md"),
        *ROOT.glob("docs/how_to/*.md"),
        ROOT / "docs/papers.md",
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
    ]
)
FILES = {
    path.relative_to(ROOT).as_posix()
    for folder in ("lifelong", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
}


def test_the_documented_layers_are_those_of_the_contract():
    contract = re.search(r"layers = \[\n(.*?)\n\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)[1]
    layers = " > ".join(re.findall(r'"([^"]+)"', contract))
    assert f"`{layers}`" in (ROOT / "docs/design/architecture.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page):
    named = set(re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", page.read_text()))
    assert [name for name in named if not any(path == name or path.endswith(f"/{name}") for path in FILES)] == []
