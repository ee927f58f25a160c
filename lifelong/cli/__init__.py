"""The command line."""

from lifelong.cli.entry import app, main

__all__ = ["app", "main"]
