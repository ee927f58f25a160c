"""Every metric file, and the headline ones against an independent computation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong.metrics import compute_all, metric_info, metric_names
from lifelong.records import LossMatrix


def matrix_of(values, initial):
    n = len(values)
    return LossMatrix(
        domains=tuple(f"d{i}" for i in range(n)),
        stages=tuple(f"{i:02d}-d{i}" for i in range(n)),
        stage_domains=tuple(range(n)),
        initial=tuple(initial),
        nats_per_token=tuple(tuple(row) for row in values),
    )


losses = st.integers(2, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.floats(0.5, 8), min_size=n, max_size=n), min_size=n, max_size=n),
        st.lists(st.floats(5, 9), min_size=n, max_size=n),
    )
)


@pytest.mark.parametrize("name", metric_names())
def test_every_metric_says_what_it_is(name):
    info = metric_info(name)
    assert info.title
    assert info.description
    assert isinstance(info.lower_is_better, bool)


@given(losses)
def test_headline_metrics_equal_a_plain_computation(case):
    values, initial = case
    r, n = np.array(values), len(values)
    metrics = compute_all(matrix_of(values, initial))
    assert math.isclose(metrics["ap"], math.exp(r[-1].mean()))
    assert math.isclose(
        metrics["ap_plus"], np.mean([math.exp(r[-1, k]) - math.exp(r[k, k]) for k in range(n - 1)]), abs_tol=1e-9
    )
    assert math.isclose(metrics["bwt"], np.mean([r[k, k] - r[-1, k] for k in range(n - 1)]), abs_tol=1e-9)
    best = np.minimum(r[:-1].min(axis=0), initial)  # also before the domain was trained on, by the base model
    assert math.isclose(metrics["forgetting"], np.mean([r[-1, k] - best[k] for k in range(n - 1)]), abs_tol=1e-9)


@given(losses, st.floats(0.1, 2))
def test_a_worse_last_row_never_looks_better(case, rise):
    values, initial = case
    worse = [*values[:-1], [*(value + rise for value in values[-1][:-1]), values[-1][-1]]]
    before, after = compute_all(matrix_of(values, initial)), compute_all(matrix_of(worse, initial))
    assert after["ap"] > before["ap"]
    assert after["ap_plus"] > before["ap_plus"]
    assert after["forgetting"] > before["forgetting"] or math.isclose(after["forgetting"], before["forgetting"])
    assert after["bwt"] < before["bwt"]


def test_domains_that_joined_later_are_left_out():
    matrix = matrix_of([[2.0, 5.0, None], [2.5, 1.0, None], [2.6, 1.1, 3.0]], [9.0, 9.0, None])
    metrics = compute_all(matrix)
    assert math.isclose(metrics["ap"], math.exp((2.6 + 1.1 + 3.0) / 3))
    assert math.isclose(metrics["bwt"], ((2.0 - 2.6) + (1.0 - 1.1)) / 2)


def test_one_stage_has_forgotten_nothing_yet():
    metrics = compute_all(matrix_of([[2.0]], [9.0]))
    assert metrics["forgetting"] is None
    assert metrics["bwt"] is None
