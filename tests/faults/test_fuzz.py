"""A short share of the fuzzing, and every case that it has ever found."""

from collections import Counter

import pytest

from tests.faults.fuzz import CODES, World, fuzz, kept, kept_cases, outcome, table
from tests.faults.kills import Stream

SECONDS = 8.0


@pytest.fixture(scope="module")
def world(short, finished_short, tmp_path_factory):
    return World(short.folder, finished_short, tmp_path_factory.mktemp("fuzz") / "scratch", Stream(short.folder).recipe)


@pytest.mark.parametrize("path", kept_cases(), ids=lambda path: path.stem)
def test_what_was_found_once_is_answered(world, path):
    name, case, found = kept(path, world)
    ended, trace = outcome(name, case, world)
    assert ended in CODES, f"{found}\n{trace}"


def test_nothing_is_found(world):
    tally, found = fuzz(world, cases=400, seconds=SECONDS)
    assert not found, f"{table(tally)}\n" + "\n".join(found)
    ended = sum(tally.values(), Counter())
    assert ended["0"] > 0, "nothing was accepted: the cases are of no use"
    assert ended["2"] > 10
