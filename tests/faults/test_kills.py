"""A few kills in every default run of the tests; `make soak` makes many, over all phases."""

from tests.faults.kills import soak


def test_a_killed_run_ends_in_the_same_bits(stream, finished, tmp_path):
    tally = soak(tmp_path, kills=2, seed=20, finished=(stream, finished))
    assert tally.kills == 2
    assert tally.findings == []
    assert tally.stages_lost == tally.files_different == 0
    assert tally.files_compared >= 50
