"""What the documentation says of the code is there: layers, and the files it names."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from lifelong.cli import app

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


def commands():
    """Every `lifelong VERB ...` of a code block or in the text, with the page it is on."""
    for page in PAGES:
        text = page.read_text()
        blocks = "\n".join(re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
        lines = re.findall(r"^\s*(?:[A-Z_]+=\S+ )*lifelong (\S.*)", blocks, re.MULTILINE)
        lines += re.findall(r"`lifelong (\S[^`\n]* [^`\n]*)`", text)
        for line in dict.fromkeys(lines):
            if "..." not in line and "|" not in line and line != "domain add":
                yield pytest.param(line, id=f"{page.stem}: {line[:60]}")


@pytest.mark.parametrize("line", list(commands()))
def test_a_command_of_a_page_is_one_that_the_command_line_takes(line):
    name, arguments, command = "lifelong", shlex.split(line, comments=True), get_command(app)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, arguments).close()
