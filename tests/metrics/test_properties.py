"""Laws of the metrics, and a second, plain computation of each."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong.metrics import compute_all
from lifelong.records import LossMatrix

LOSSES = st.floats(0.01, 12.0)


@st.composite
def matrices(draw: st.DrawFn, missing: bool = False) -> LossMatrix:
    num_domains = draw(st.integers(1, 5))
    visits = draw(st.lists(st.integers(0, num_domains - 1), min_size=1, max_size=7))
    entry = st.one_of(st.none(), LOSSES) if missing else LOSSES
    row = st.tuples(*[entry] * num_domains)
    rows = tuple(draw(row) for _ in visits)
    return LossMatrix(
        domains=tuple(f"d{k}" for k in range(num_domains)),
        stages=tuple(f"{t:02d}-d{k}" for t, k in enumerate(visits)),
        stage_domains=tuple(visits),
        initial=draw(row),
        nats_per_token=rows,
        bits_per_byte=rows,
    )


def shifted(matrix: LossMatrix, amount: float) -> LossMatrix:
    rows = tuple(tuple(None if x is None else x + amount for x in row) for row in matrix.nats_per_token)
    initial = tuple(None if x is None else x + amount for x in matrix.initial)
    return LossMatrix(matrix.domains, matrix.stages, matrix.stage_domains, initial, rows, rows)


def permuted(matrix: LossMatrix) -> LossMatrix:
    """The same run with its columns in reverse order."""
    last = len(matrix.domains) - 1
    rows = tuple(row[::-1] for row in matrix.nats_per_token)
    visits = tuple(last - k for k in matrix.stage_domains)
    return LossMatrix(matrix.domains[::-1], matrix.stages, visits, matrix.initial[::-1], rows, rows)


@given(matrices(missing=True), st.floats(-0.005, 5.0))
def test_differences_ignore_a_shift_of_all_losses(matrix: LossMatrix, amount: float) -> None:
    before, after = compute_all(matrix), compute_all(shifted(matrix, amount))
    for name in ("ap_plus_log_ratio", "bwt", "fwt", "forgetting", "worst_forgetting", "gain"):
        assert after[name] == (None if before[name] is None else pytest.approx(before[name], abs=1e-9)), name
    if before["ap"] is not None:
        assert after["ap"] == pytest.approx(before["ap"] * math.exp(amount), rel=1e-9)


@given(matrices(missing=True))
def test_order_of_columns_does_not_matter(matrix: LossMatrix) -> None:
    before, after = compute_all(matrix), compute_all(permuted(matrix))
    for name, value in before.items():
        assert after[name] == (None if value is None else pytest.approx(value, abs=1e-9)), name


@given(matrices())
def test_order_between_metrics(matrix: LossMatrix) -> None:
    metrics = compute_all(matrix)
    if metrics["bwt"] is None:
        assert metrics["forgetting"] is None
        return
    assert metrics["bwt"] == pytest.approx(-metrics["ap_plus_log_ratio"])
    # the best so far is at least as good as the loss right after learning
    assert metrics["forgetting"] >= metrics["ap_plus_log_ratio"] - 1e-12
    assert metrics["worst_forgetting"] >= metrics["forgetting"] - 1e-12


@given(matrices())
def test_against_a_plain_second_computation(matrix: LossMatrix) -> None:
    metrics = compute_all(matrix)
    R, visits, end = matrix.nats_per_token, list(matrix.stage_domains), len(matrix.stages) - 1
    seen = sorted(set(visits))
    assert metrics["ap"] == pytest.approx(statistics.geometric_mean([math.exp(R[end][k]) for k in seen]))
    old = [k for k in seen if k != visits[-1]]
    if old:
        learned = {k: end - visits[::-1].index(k) for k in old}
        assert metrics["ap_plus"] == pytest.approx(
            statistics.fmean([math.exp(R[end][k]) - math.exp(R[learned[k]][k]) for k in old])
        )
        best = {k: sorted([matrix.initial[k], *(R[t][k] for t in range(end))])[0] for k in old}
        assert metrics["forgetting"] == pytest.approx(statistics.fmean([R[end][k] - best[k] for k in old]))
    else:
        assert metrics["ap_plus"] is None
    below, above = [], []
    for t in range(end + 1):
        for k in range(len(matrix.domains)):
            met_before = k in visits[:t]
            if met_before and k != visits[t]:
                below.append(R[t][k])
            if not met_before and k != visits[t]:
                above.append(R[t][k])
    assert metrics["backward"] == (pytest.approx(statistics.fmean(below)) if below else None)
    assert metrics["forward"] == (pytest.approx(statistics.fmean(above)) if above else None)
