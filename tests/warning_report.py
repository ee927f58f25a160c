"""Warnings of a test run, counted at its end; `--strict-warnings` makes each of them an error.

A library that deprecates a name tells news: nothing has changed for a user yet, so the default run reports it and
passes. `make check` and `make test-newest` are strict, so that the maintainers act on it in time.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import pytest

from lifelong.pipeline.environment import untested_note

ROOT = Path(__file__).parents[1]
SHOWN = 160
# what one library says to another, whatever we do
BETWEEN_LIBRARIES = ("JAXopt is no longer maintained",)  # qpsolvers, when Avalanche is imported


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strict-warnings", action="store_true", help="every warning is an error")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--strict-warnings"):
        for line in ("error", *(f"ignore:{text}" for text in BETWEEN_LIBRARIES)):
            config.addinivalue_line("filterwarnings", line)
    config.pluginmanager.register(WarningReport(), "lifelong-warning-report")


class WarningReport:
    """Counts warnings by what they say and whether a file of this repository gave them."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[bool, str, str]] = Counter()

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        ours = Path(warning_message.filename).is_relative_to(ROOT) and ".venv" not in warning_message.filename
        text = " ".join(str(warning_message.message).split())
        self.counts[ours, warning_message.category.__name__, text[:SHOWN]] += 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if note := untested_note():
            terminalreporter.write_line(f"note: {note}")
        if not self.counts:
            return
        terminalreporter.section(f"{sum(self.counts.values())} warnings, of which none failed a test")
        for (ours, category, text), count in self.counts.most_common():
            terminalreporter.write_line(
                f"{count:>6} x {'this repository' if ours else 'a library'}: {category}: {text}"
            )
