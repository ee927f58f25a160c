"""Our forgetting metrics against Avalanche's functional forgetting."""

from __future__ import annotations

import pytest
from hypothesis import given

from lifelong.metrics import compute_all
from lifelong.records import LossMatrix
from tests.metrics.test_properties import matrices

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # importing Avalanche takes some ten seconds


@given(matrices())
def test_ap_plus_log_ratio_is_the_mean_of_avalanches_forgetting(matrix: LossMatrix) -> None:
    from tests.support_avalanche import forgetting_since_learned

    theirs = forgetting_since_learned(matrix)
    ours = compute_all(matrix)
    if not theirs:
        assert ours["ap_plus_log_ratio"] is None
        return
    mean = sum(theirs.values()) / len(theirs)
    assert ours["ap_plus_log_ratio"] == pytest.approx(mean, abs=1e-9)
    assert ours["bwt"] == pytest.approx(-mean, abs=1e-9)


def test_the_sign_is_ours_although_the_docstring_says_otherwise() -> None:
    from tests.support_avalanche import forgetting_since_learned

    matrix = LossMatrix(("a", "b"), ("00-a", "01-b"), (0, 1), (5.0, 5.0), ((2.0, 5.0), (3.0, 1.0)))
    assert forgetting_since_learned(matrix) == {"a": 1.0}
