"""Sphinx configuration; the build treats warnings as errors."""

from lifelong import __version__

project = "lifelong"
author = "The lifelong maintainers"
release = __version__
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "lifelong"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
suppress_warnings = ["myst.xref_missing"]
