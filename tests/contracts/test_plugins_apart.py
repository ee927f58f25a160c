"""Plugins do not import each other: each can be read, copied or removed alone; what they share begins with `_`."""

import ast
from pathlib import Path

import pytest

import lifelong
from lifelong.plugins import plugin_names

FOLDERS = (
    "expand.families", "inherit.teachers", "methods", "metrics", "stream.cards.sources", "train.policies"
)  # fmt: skip


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_plugin_imports_another(folder):
    package = f"lifelong.{folder}"
    names = {name.replace("-", "_") for name in plugin_names(package)}
    root = Path(lifelong.__file__).parent / folder.replace(".", "/")
    for name in sorted(names):
        tree = ast.parse((root / f"{name}.py").read_text())
        imported = {
            node.module.removeprefix(f"{package}.").split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{package}.")
        }
        assert not imported & names, f"{folder}/{name}.py"
