"""Code of the documentation, as a reader would run it."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

import lifelong
from tests.support import WORDS, run_cli, tiny_checkpoint, write_domain

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


@pytest.mark.slow
def test_the_tutorial_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    """Every command as it is written, on stand-ins of the checkpoint and of the corpora under the same names."""
    monkeypatch.chdir(tmp_path)
    for name in ("cards", "domains", "contracts", "rulings"):
        Path(name).mkdir()
    for name in WORDS:
        write_domain(Path("cards"), name, documents=300)
    tiny_checkpoint(Path("HuggingFaceTB/SmolLM2-135M"), Path("cards"))
    for corpus, name in (("contracts", "law"), ("rulings", "town")):
        Path(corpus, "a.jsonl.gz").write_bytes(gzip.compress(Path(f"cards/{name}.train.jsonl").read_bytes()))
    splits = {
        key: [str(tmp_path / f"cards/sea.{split}.jsonl")] for key, split in (("files", "train"), ("valid", "valid"))
    }
    Path("domains/general-text.yaml").write_text(json.dumps({"source": splits, "licence": "CC0-1.0"}))

    text, blocks = (DOCS / "tutorial.md").read_text(), python_blocks("tutorial.md")
    commands = [
        shlex.split(line)
        for block in re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    for program, *arguments in commands:
        assert program == "lifelong"
        assert run_cli(monkeypatch, *arguments) == 0, (arguments, capsys.readouterr().err)
    assert "Kept general-text" in capsys.readouterr().out
    assert len(commands) == 13
    for block in blocks:
        exec(compile(block, "tutorial.md", "exec"), {})
    assert len(blocks) == 1


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    notebook, names = json.loads((DOCS / "tour.ipynb").read_text()), {}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells):
        exec(compile(cell, f"tour.ipynb, cell {number}", "exec"), names)
    assert len(cells) == 5
    assert names["report"].max_logit_difference_float64 < 1e-10
    assert names["result"].metrics["forgetting"] is not None
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")


def test_every_public_name_is_in_the_reference():
    text = (DOCS / "api/index.md").read_text()
    documented = re.findall(r"^\.\. auto\w+:: (?:lifelong\.evaluate\.)?(\w+)", text, re.MULTILINE)
    assert sorted(documented) == sorted(set(lifelong.__all__) - {"__version__"})
