"""The learning rate over a stream: continuous where it should be, and at the levels that the policies promise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong.train.schedule import LrPolicy, StageSpan, curve, level, peak_of, sparkline, trunk_step

POLICIES = ("rewarm", "continue", "wsd", "infinite", "autoregressive")
SPANS = [StageSpan(0, 100, 400), StageSpan(100, 100, 400), StageSpan(200, 200, 400)]
kinds = st.sampled_from(POLICIES)
shares = st.floats(0.01, 0.4)


@given(kinds, shares, shares, st.floats(0, 0.9), st.sampled_from(SPANS), st.floats(0, 1))
def test_a_level_lies_between_zero_and_the_peak(kind, warmup, decay, floor, span, progress):
    policy = LrPolicy(kind, warmup=warmup, decay=decay, floor=floor)
    assert 0 <= level(policy, span, progress) <= 1 + 1e-12


@given(kinds, shares, shares, st.floats(0, 0.9), st.sampled_from(SPANS), st.floats(0, 0.999))
def test_nothing_jumps_inside_a_stage(kind, warmup, decay, floor, span, progress):
    policy = LrPolicy(kind, warmup=warmup, decay=decay, floor=floor)
    step = 1e-5
    assert abs(level(policy, span, progress + step) - level(policy, span, progress)) < 2 * step / min(warmup, decay)


@pytest.mark.parametrize("kind", ["rewarm", "wsd", "infinite", "autoregressive"])
def test_every_released_stage_ends_at_the_floor(kind):
    policy = LrPolicy(kind, floor=0.1)
    assert [level(policy, span, 1.0) for span in SPANS] == pytest.approx([0.1 * peak_of(policy, s) for s in SPANS])


def test_continue_is_one_cosine_over_all_stages():
    policy = LrPolicy("continue", warmup=0.1)
    ends, starts = [level(policy, s, 1.0) for s in SPANS], [level(policy, s, 0.0) for s in SPANS]
    assert starts[0] == 0
    assert starts[1:] == pytest.approx(ends[:-1])
    assert ends == pytest.approx([0.5 * (1 + 2**-0.5), 0.5, 0.0])


def test_infinite_goes_on_where_the_annealing_began():
    policy = LrPolicy("infinite", decay=0.25, constant=0.6, cooldown=0.3)
    assert level(policy, SPANS[0], 0.75) == pytest.approx(0.6)
    assert level(policy, SPANS[1], 0.0) == pytest.approx(0.6)
    assert level(policy, SPANS[0], policy.warmup) == pytest.approx(1.0)
    assert trunk_step(policy, 100) == 75
    assert trunk_step(LrPolicy("wsd"), 100) is None


def test_autoregressive_peaks_fall_from_stage_to_stage():
    policy = LrPolicy("autoregressive")
    equal = [StageSpan(100 * i, 100, 400) for i in range(4)]
    peaks = [peak_of(policy, span) for span in equal]
    assert peaks == pytest.approx([1.0, 0.5, 0.25, 0.5 * (1 - 2**-0.5)])


def test_a_curve_can_be_printed():
    drawn = sparkline(curve(LrPolicy("rewarm", warmup=0.25), SPANS[0], 8), 1.0)
    assert len(drawn) == 8
    assert drawn[2] == "█"
    assert drawn[-1] == "▁"
