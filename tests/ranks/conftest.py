"""One launch of two processes for all tests of the default suite: starting them costs more than what they do."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ranks.launches import Job, Launch, launch, write_recipe
from tests.ranks.methods import FEW


@dataclass(frozen=True)
class TwoProcesses:
    """What two processes did: a few methods, then a run in which the second dies at step 4 of the second stage."""

    ended: Launch
    methods: Path
    recipe: Path
    run: Path


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory) -> TwoProcesses:
    """Their work, and how it ended."""
    folder = tmp_path_factory.mktemp("two")
    recipe = write_recipe(folder)
    jobs = [Job.of_methods(folder / "methods", FEW), Job.at(recipe, folder / "run", die=(1, 4))]
    return TwoProcesses(launch(2, jobs, folder), folder / "methods", recipe, folder / "run")
