"""Sphinx configuration; the build treats warnings as errors."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the pages of this checkout, whatever is installed
sys.path.insert(0, str(Path(__file__).parent))

from lifelong import __version__

project = "lifelong"
author = project_copyright = "The lifelong maintainers"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
html_theme = "furo"
html_title = "lifelong"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]


def code_in_docstrings(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings mark code by single backticks, which reStructuredText would set in italics."""
    lines[:] = [re.sub(r"(?<![:`])`([^`]+)`(?!`)", r"``\1``", line) for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    from key_reference import write_reference

    write_reference(Path(__file__).parent / "reference")
    app.connect("autodoc-process-docstring", code_in_docstrings)
