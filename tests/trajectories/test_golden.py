"""Runs are what they were: losses on every machine, every byte with the versions that the hashes were made with."""

import json

import pytest

from tests.trajectories.golden import CASES, GOLDEN, recorded

LOSS_TOLERANCE = 2e-3  # relative; other processors and versions round otherwise, and rounding grows while training


def test_a_run_is_what_it_was(tmp_path):
    golden, found = json.loads(GOLDEN.read_text()), recorded(tmp_path)
    for case in CASES:
        before, now = (record["nats_per_token"][case] for record in (golden, found))
        assert len(before) == len(now)
        for row, new in zip(before, now, strict=True):
            assert new == pytest.approx(row, rel=LOSS_TOLERANCE)
        if golden["holds_for"] == found["holds_for"]:
            assert found["hashes"][case] == golden["hashes"][case]
