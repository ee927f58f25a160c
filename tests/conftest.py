"""Every test runs on one thread, offline and without trackers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="lifelong-tests-")  # what tests allow is not for their user

pytest_plugins = ["tests.warning_report"]

settings.register_profile("lifelong", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("lifelong")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lifelong_data() -> Path:
    """The real corpora, for slow tests; $LIFELONG_DATA names them."""
    folder = os.environ.get("LIFELONG_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set LIFELONG_DATA to the folder of the corpora to run this test")
    return Path(folder)


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with corpora of four domains and their cards."""
    from tests.support import WORDS, write_domain

    folder = tmp_path_factory.mktemp("cards")
    for name in WORDS:
        write_domain(folder, name)
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("-m"):
        return
    deselected = [item for item in items if _left_out(item)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if not _left_out(item)]


def _left_out(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(marker) for marker in ("slow", "browser"))
