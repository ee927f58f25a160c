"""Metrics against figures worked out by hand."""

from __future__ import annotations

import math

import pytest

from lifelong.errors import UnknownNameError
from lifelong.metrics import compute_all, matrix_up_to, metric_info
from lifelong.records import LossMatrix

LN2 = math.log(2)

# perplexities are powers of two, so that every figure can be checked in the head
THREE = LossMatrix(
    domains=("wiki", "news", "code"),
    stages=("00-wiki", "01-news", "02-code"),
    stage_domains=(0, 1, 2),
    initial=(10 * LN2, 10 * LN2, 10 * LN2),
    nats_per_token=(
        (5 * LN2, 8 * LN2, 9 * LN2),
        (4 * LN2, 4 * LN2, 8 * LN2),
        (6 * LN2, 5 * LN2, 3 * LN2),
    ),
    bits_per_byte=((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1.5, 1.0, 0.5)),
    tokens=((10, 10, 10),) * 3,
    initial_bits_per_byte=(2.0, 2.0, 2.0),
)


def test_by_hand() -> None:
    metrics = compute_all(THREE)
    assert metrics["ap"] == pytest.approx(2 ** (14 / 3))
    assert metrics["ap_plus"] == pytest.approx(((2**6 - 2**5) + (2**5 - 2**4)) / 2)
    assert metrics["ap_plus_log_ratio"] == pytest.approx(1 * LN2)
    assert metrics["bwt"] == pytest.approx(-1 * LN2)
    # wiki was best (4) after news, not when it was learned (5): forgetting looks at the best
    assert metrics["forgetting"] == pytest.approx(1.5 * LN2)
    assert metrics["worst_forgetting"] == pytest.approx(2 * LN2)
    assert metrics["fwt"] == pytest.approx(((10 - 8) + (10 - 8)) / 2 * LN2)
    assert metrics["in_domain"] == pytest.approx(4 * LN2)
    assert metrics["backward"] == pytest.approx((4 + 6 + 5) / 3 * LN2)
    assert metrics["forward"] == pytest.approx((8 + 9 + 8) / 3 * LN2)
    assert metrics["gain"] == pytest.approx((5 + 4 + 5) / 3 * LN2)
    assert metrics["final_bits_per_byte"] == pytest.approx(1.0)


def test_one_stage_has_nothing_to_forget() -> None:
    metrics = compute_all(matrix_up_to(THREE, 0))
    assert metrics["ap"] == pytest.approx(32.0)
    assert metrics["gain"] == pytest.approx(5 * LN2)
    for name in ("ap_plus", "ap_plus_log_ratio", "bwt", "forgetting", "worst_forgetting", "fwt", "backward"):
        assert metrics[name] is None, name


def test_no_stage_at_all() -> None:
    assert set(compute_all(matrix_up_to(THREE, -1)).values()) == {None}


def test_a_domain_that_returns_counts_once_and_from_its_last_visit() -> None:
    matrix = LossMatrix(
        domains=("a", "b"),
        stages=("00-a", "01-b", "02-a", "03-b"),
        stage_domains=(0, 1, 0, 1),
        initial=(9.0, 9.0),
        nats_per_token=((3.0, 8.0), (5.0, 2.0), (2.5, 4.0), (3.5, 1.5)),
    )
    metrics = compute_all(matrix)
    assert metrics["ap"] == pytest.approx(math.exp((3.5 + 1.5) / 2))
    assert metrics["bwt"] == pytest.approx(2.5 - 3.5)
    assert metrics["forgetting"] == pytest.approx(3.5 - 2.5)
    assert metrics["fwt"] == pytest.approx(9.0 - 8.0)
    assert metrics["backward"] == pytest.approx((5.0 + 4.0 + 3.5) / 3)


def test_a_domain_that_joined_later() -> None:
    matrix = LossMatrix(
        domains=("a", "b", "c"),
        stages=("00-a", "01-b", "02-c"),
        stage_domains=(0, 1, 2),
        initial=(9.0, 9.0, None),
        nats_per_token=((3.0, 8.0, None), (4.0, 2.0, None), (5.0, 3.0, 1.0)),
    )
    metrics = compute_all(matrix)
    assert metrics["ap"] == pytest.approx(math.exp(3.0))
    assert metrics["forward"] == pytest.approx(8.0)
    assert metrics["fwt"] == pytest.approx(1.0)
    assert metrics["gain"] == pytest.approx((6.0 + 6.0) / 2)
    assert metrics["bwt"] == pytest.approx(((3 - 5) + (2 - 3)) / 2)
    assert metrics["final_bits_per_byte"] is None


def test_a_diverged_run_has_infinite_perplexity_and_no_crash() -> None:
    matrix = LossMatrix(("a", "b"), ("00-a", "01-b"), (0, 1), (9.0, 9.0), ((3.0, 9.0), (5000.0, 6000.0)))
    metrics = compute_all(matrix)
    assert metrics["ap"] == math.inf
    assert metrics["ap_plus"] == math.inf
    assert metrics["forgetting"] == pytest.approx(4997.0)


def test_over_stages_is_the_metric_of_the_matrix_at_that_time() -> None:
    stages = [compute_all(matrix_up_to(THREE, stage)) for stage in range(3)]
    assert [stage["ap"] for stage in stages] == pytest.approx([2.0**5, 2.0**4, 2 ** (14 / 3)])
    assert stages[0]["bwt"] is None


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'forgetting'"):
        metric_info("forgeting")
