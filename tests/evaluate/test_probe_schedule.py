"""When a stage is probed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lifelong.evaluate.probes import probe_steps


@given(st.integers(1, 100_000), st.integers(0, 40))
def test_steps_are_distinct_inside_the_stage_and_end_with_it(num_steps, count):
    steps = probe_steps(num_steps, count)
    assert len(steps) <= count
    assert steps == sorted(set(steps))
    assert all(1 <= step <= num_steps for step in steps)
    assert not count or steps[-1] == num_steps


def test_the_first_per_cents_are_seen_densely():
    steps = probe_steps(10_000, 13)
    assert steps[0] == 1
    assert sum(step <= 300 for step in steps) >= 8
