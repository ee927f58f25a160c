"""A few kills in every default run of the tests; `make soak` makes many, over all phases."""

import pytest

from tests.faults.kills import Stream, soak


def test_a_killed_run_ends_in_the_same_bits(stream, finished, tmp_path):
    tally = soak(tmp_path, kills=2, seed=20, finished=(stream, finished))
    assert tally.kills == 2
    assert tally.findings == []
    assert tally.stages_lost == tally.files_different == 0
    assert tally.files_compared >= 50


@pytest.mark.slow
def test_a_killed_run_that_writes_its_own_memory_ends_in_the_same_bits(tmp_path):
    stream, finished = Stream(tmp_path / "corpora", rich="generated"), tmp_path / "finished"
    stream.run(finished)
    tally = soak(tmp_path, kills=4, seed=3, finished=(stream, finished))
    assert tally.kills == 4
    assert tally.findings == []
    assert tally.stages_lost == tally.files_different == 0
