"""Figures at equal tokens, FLOPs and seconds; seeds that each have their own tokenizer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lifelong.records import ComputeLedger, Cost
from lifelong.report.compare import compare_runs
from lifelong.report.compare_page import comparison_markdown, comparison_verdict
from lifelong.report.equal_cost import at_budget, equal_cost_values, trajectory
from tests.report.test_compare import DOMAINS, run, seeds, shown


def costing(history, flops):
    """The run with another price of training, and an evaluation that costs a fortune."""
    cost = ComputeLedger({"train": Cost(1000, flops, 0.0, 2.0), "evaluate": Cost(0, 1e20, 0.0, 50.0)}).to_json()
    matrix = replace(history.matrix, initial_bits_per_byte=tuple(x.bits_per_byte for x in history.initial_losses))
    return replace(history, matrix=matrix, stages=tuple(replace(record, cost=cost) for record in history.stages))


def test_the_trajectory_is_the_mean_over_the_stream_against_training_alone():
    history = costing(run(), 1e12)
    points = trajectory(history, "flops")
    assert [spent for spent, _ in points] == [0.0, 1e12, 2e12, 3e12]
    rows = [history.matrix.initial_bits_per_byte, *history.matrix.bits_per_byte]
    assert [bits for _, bits in points] == [pytest.approx(sum(row) / len(DOMAINS)) for row in rows]


def test_a_more_expensive_run_is_read_at_the_cost_of_the_cheapest():
    cheap, dear = costing(run("a"), 1e12), costing(run("b"), 2e12)
    ((low,), (high,)) = equal_cost_values([[cheap], [dear]], "flops")
    end = trajectory(cheap, "flops")[-1][1]
    points = trajectory(dear, "flops")
    assert low == end
    assert high == pytest.approx((points[1][1] + points[2][1]) / 2)  # 3e12 lies half way between 2e12 and 4e12
    metrics = compare_runs([cheap, dear]).metrics
    assert [e.best for e in metrics["bits_at_equal_flops"]] == [True, False]
    assert [round(e.mean, 9) for e in metrics["bits_at_equal_tokens"]] == [round(end, 9)] * 2


def test_a_budget_outside_of_what_was_measured_has_no_figure():
    assert at_budget([(1.0, 3.0), (2.0, 2.0)], 0.5) is None
    assert at_budget([(1.0, 3.0), (2.0, 2.0)], 2.5) is None
    assert at_budget([(1.0, 3.0), (2.0, 2.0)], 1.25) == 2.75
    assert at_budget([], 1.0) is None


def test_a_tokenizer_of_every_seed_still_compares_methods_seed_by_seed():
    runs = [
        run(name, seed, rise, 0.02, tokenizer=f"t{seed}")
        for name, rise in (("a", 0.5), ("b", 0.2))
        for seed in range(3)
    ]
    comparison = compare_runs(runs)
    assert comparison.differences == ()
    assert comparison.metrics["forgetting"][0].best
    other = [run("c", 7, 0.3, 0.02, tokenizer="t7")]  # another seed: its tokenizer is paired with none
    assert "tokenizers" in compare_runs([*runs, *other]).differences[0]


def test_the_verdict_names_the_best_and_its_equals():
    comparison = compare_runs([*seeds("plain", 0.5), *seeds("kept", 0.2), *seeds("same", 0.2001, noise=0.2)])
    text = comparison_verdict(comparison)
    assert text.startswith("AP: kept is lowest")
    assert "worse: plain" in text
    assert "not told apart from it: same" in text
    assert text in comparison_markdown(comparison)
    assert "4 seeds each" in shown(comparison)
    assert math.isfinite(comparison.metrics["ap"][0].mean)


def test_the_headline_says_what_the_lowest_loss_was_paid_with():
    def taking(history, flops):
        cost = ComputeLedger({"train": Cost(1000, flops, 0.0, 2.0)}).to_json()
        return replace(history, stages=tuple(replace(record, cost=cost) for record in history.stages))

    cheap, dear = (
        [taking(one, flops) for one in seeds(name, rise)]
        for name, rise, flops in (("cheap", 0.5, 1e12), ("dear", 0.2, 1.9e12))
    )
    text = comparison_verdict(compare_runs([*cheap, *dear]))
    assert "AP: dear is lowest" in text.split(";")[0]
    assert "for 1.90 times the FLOPs of cheap" in text.split(";")[0]
    assert text.count("times the FLOPs") == 1
    swapped = [taking(one, 1e12) for one in dear]
    assert "times the FLOPs" not in comparison_verdict(compare_runs([*cheap, *swapped]))
