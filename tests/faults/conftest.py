"""One finished run, of three stages with two growths and an extension, that all fault tests copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.kills import Stream


@pytest.fixture(scope="session")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    return Stream(tmp_path_factory.mktemp("faults") / "corpora")


@pytest.fixture(scope="session")
def finished(stream: Stream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faults") / "run"
    stream.run(out)
    return out


@pytest.fixture(scope="session")
def short(stream: Stream) -> Stream:
    """One stage, for tests that finish a run themselves."""
    return Stream(stream.folder, short=True)


@pytest.fixture(scope="session")
def finished_short(short: Stream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("faults") / "short"
    short.run(out)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
