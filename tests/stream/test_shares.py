"""Shares of several domains of one stage: exact at any time."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong.replay.dataset import StageDataset
from lifelong.stream.joint import JointBlocks, domain_of
from lifelong.stream.shares import exact_shares, period
from tests.stream.test_joint import Corpus, corpus


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6))
def test_no_domain_is_ever_a_whole_row_away_from_its_share(counts):
    shares = tuple(Fraction(count, sum(counts)) for count in counts)
    owners, given_rows = period(shares), [0] * len(shares)
    for row, owner in enumerate(owners, start=1):
        given_rows[owner] += 1
        assert all(abs(have - share * row) < 1 for have, share in zip(given_rows, shares, strict=True))
    assert given_rows == [share * len(owners) for share in shares]


def test_shares_are_read_as_the_fractions_that_were_meant():
    assert exact_shares({"news": 0.2}) == (Fraction(4, 5), Fraction(1, 5))
    assert exact_shares({"news": 1 / 3, "bio": 0.333}) == (Fraction(1001, 3000), Fraction(1, 3), Fraction(333, 1000))


@pytest.mark.parametrize(("shares", "message"), [
    ({"a": 0.6, "b": 0.4}, "sum to 1;"), ({"a": 1e-6}, "smallest is 0.0001"),
    ({"a": 1 / 9973, "b": 1 / 9967}, "round them to four decimals"),
])  # fmt: skip
def test_shares_that_cannot_be(shares, message):
    with pytest.raises(ValueError, match=message):
        exact_shares(shares)


def _corpora(sizes):
    """Corpora whose every block is another: value 1000 * domain + place."""
    return [Corpus(block for k in range(size) for block in corpus(1000 * i + k, 1)) for i, size in enumerate(sizes)]


def test_every_domain_is_walked_through_in_a_fresh_order_per_epoch():
    joint = JointBlocks(_corpora([7, 3]), ["own", "other"], exact_shares({"other": 0.25}))
    data = StageDataset(joint, None, num_steps=120, blocks_per_step=1, domain="own", domain_ids={"own": 0, "other": 1})
    rows = [data[i] for i in range(len(data))]
    values = {
        name: [int(r["block"].ids[0]) for r in rows if r["domain_id"] == i] for i, name in enumerate(joint.domains)
    }
    assert {name: len(found) for name, found in values.items()} == {"own": 90, "other": 30} == joint.rows_of(120)
    for name, size in (("own", 7), ("other", 3)):
        epochs = [tuple(values[name][i : i + size]) for i in range(0, len(values[name]) // size * size, size)]
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert len(set(epochs)) > 1
    again = StageDataset(joint, None, num_steps=120, blocks_per_step=1, domain="own", domain_ids={"own": 0, "other": 1})
    assert [r["mask_key"] for r in rows[77:]] == [again[i]["mask_key"] for i in range(77, 120)]


def test_an_epoch_of_shares_holds_every_block_and_knows_its_owners():
    joint = JointBlocks(_corpora([5, 4]), ["own", "other"], exact_shares({"other": 0.4}))
    seen = Counter(domain_of(joint, row, "own") for row in range(len(joint)))
    assert seen == {"own": 6, "other": 4} or math.isclose(seen["other"] / len(joint), 0.4)
    assert len({int(joint[row].ids[0]) for row in range(len(joint))}) == 9
    assert np.array_equal(joint[0].ids, joint.corpora[0][0].ids)


def test_equal_parts_are_what_they_were():
    joint = JointBlocks(_corpora([3, 2]), ["own", "other"])
    assert [int(joint[row].ids[0]) for row in range(len(joint))] == [0, 1000, 1, 1001, 2, 1000]
    assert [domain_of(joint, row, "own") for row in range(3)] == ["own", "other", "own"]
