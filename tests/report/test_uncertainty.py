"""Intervals and tests against known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lifelong.report.uncertainty import (
    bootstrap_p_value,
    entry_intervals,
    holm,
    metric_intervals,
    percentile_interval,
    t_interval,
    t_test,
)
from tests.report.test_compare import run


def test_the_bootstrap_interval_has_the_width_of_the_normal_theory():
    history = run()
    loss = history.losses[2][0]
    tokens, nats = np.array(loss.document_tokens), np.array(loss.document_nats)
    ratio = nats.sum() / tokens.sum()
    error = np.sqrt(((nats - ratio * tokens) ** 2).sum()) / tokens.sum()  # of a ratio, to first order
    interval = entry_intervals(history)[3][0]
    assert interval.low < loss.nats_per_token < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_differences_between_rows_are_surer_than_rows():
    """The same documents are drawn for every stage: forgetting is free of their common spread."""
    intervals = metric_intervals(run())
    assert intervals["forgetting"].high - intervals["forgetting"].low < 1e-9
    assert intervals["in_domain"].high - intervals["in_domain"].low > 0.05
    assert metric_intervals(run()) == intervals


def test_without_documents_there_is_no_interval():
    history = run()
    bare = [
        tuple(type(x)(x.domain, x.nats, x.tokens, x.bytes) for x in row)
        for row in (history.initial_losses, *history.losses)
    ]
    history = type(history)(**{**history.__dict__, "initial_losses": bare[0], "losses": tuple(bare[1:])})
    assert metric_intervals(history) == {}
    assert entry_intervals(history)[0] == [None, None, None]


def test_students_t_by_hand():
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert t_interval([1.0]) is None
    p_value, name = t_test({0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert p_value == pytest.approx(0.0741799, abs=1e-6)  # t = 2 / (1 / sqrt(3)) with 2 degrees of freedom
    assert name == "paired t, 3 seeds"
    assert t_test({0: 1.0}, {1: 2.0, 2: 1.0}) is None
    assert t_test({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})[0] == 1.0


def test_welch_equals_scipy():
    left, right = [1.0, 2.0, 3.5, 2.2], [2.0, 4.0, 6.5]
    p_value, name = t_test(dict(enumerate(left)), dict(enumerate(right, start=10)))
    assert p_value == pytest.approx(stats.ttest_ind(left, right, equal_var=False).pvalue)
    assert name == "Welch's t, 4 and 3 seeds"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_makes_surer_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, corrected, strict=True))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [corrected[i] for i in order] == sorted(corrected)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=50))
def test_bootstrap_p_values_are_symmetric_and_never_zero(values):
    p_value = bootstrap_p_value(values)
    assert p_value == bootstrap_p_value([-value for value in values])
    assert 0 < p_value <= 1


def test_percentiles_need_finite_values():
    assert percentile_interval([1.0, None]) is None
    assert percentile_interval([1.0, math.inf]) is None
    assert percentile_interval(list(map(float, range(101)))).low == pytest.approx(2.5)
