"""Several domains trained on together."""

from collections import Counter

import numpy as np
import pytest

from lifelong.stream.blocks import Block
from lifelong.stream.joint import JointBlocks


class Corpus(list):
    fingerprint = "one"


def corpus(value, count):
    starts = np.zeros(1, np.int32)
    return Corpus(Block(np.full(4, value, np.int32), starts, starts) for _ in range(count))


def test_domains_come_in_equal_parts_and_short_ones_again():
    joint = JointBlocks([corpus(1, 6), corpus(2, 2), corpus(3, 3)])
    assert len(joint) == 18
    assert Counter(int(joint[i].ids[0]) for i in range(18)) == {1: 6, 2: 6, 3: 6}
    assert len({id(joint[i]) for i in range(18)}) == 6 + 2 + 3
    with pytest.raises(IndexError):
        joint[18]


def test_its_fingerprint_is_that_of_all():
    other = corpus(2, 1)
    other.fingerprint = "two"
    first, second = JointBlocks([corpus(1, 1), corpus(1, 1)]), JointBlocks([corpus(1, 1), other])
    assert first.fingerprint != second.fingerprint
