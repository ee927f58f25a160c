"""Which runs belong together, which differences are real, and what is said where nothing compares."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from lifelong.records import ComputeLedger, Cost, DomainLoss, LossMatrix, RunHistory, StageRecord
from lifelong.report.compare import compare_runs
from lifelong.report.compare_page import comparison_html, comparison_markdown, comparison_table, write_comparison
from lifelong.report.statement import tiles
from lifelong.report.uncertainty import Interval
from lifelong.report.view import true_minus
from tests.report.pages import own_script_only

DOMAINS = ("wiki", "news", "code")


def run(name="plain", seed=0, rise=0.5, noise=0.0, flops=1e12, tokenizer="t", domains=DOMAINS, recipe=None):
    """A run of three stages in which earlier domains rise by `rise` nats a stage; 40 documents a domain."""
    rng, documents = np.random.default_rng(7), {}
    for domain in domains:
        tokens = rng.integers(20, 60, size=40)
        documents[domain] = (tokens, rng.normal(0, 0.3, size=40))
    jitter = np.random.default_rng(seed).normal(0, noise) if noise else 0.0

    def loss(domain, mean):
        tokens, offsets = documents[domain]
        nats = tokens * (mean + offsets)
        return DomainLoss(
            domain, float(nats.sum()), int(tokens.sum()), int(4 * tokens.sum()), tuple(nats), tuple(map(int, tokens))
        )

    rows = tuple(
        tuple(loss(d, 7.0 if k > t else 4.0 + (rise + jitter) * (t - k)) for k, d in enumerate(domains))
        for t in range(len(domains))
    )
    initial = tuple(loss(d, 8.0) for d in domains)
    matrix = LossMatrix(
        domains,
        tuple(f"{t:02d}-{d}" for t, d in enumerate(domains)),
        tuple(range(len(domains))),
        tuple(x.nats_per_token for x in initial),
        tuple(tuple(x.nats_per_token for x in row) for row in rows),
        tuple(tuple(x.bits_per_byte for x in row) for row in rows),
    )
    cost = ComputeLedger({"train": Cost(1000, flops, 0.0, 2.0)}).to_json()
    stages = tuple(
        StageRecord(t, matrix.stages[t], d, "", "r", 1000, {}, 10, cost, {}, {"tokenizer": tokenizer}, {}, {}, {})
        for t, d in enumerate(domains)
    )
    return RunHistory(
        name=name, path=f"runs/{name}-{seed}", recipe={"name": name, "seed": seed, **(recipe or {})}, environment={},
        stages=stages, unfinished=(), matrix=matrix, initial_losses=initial, losses=rows, train=((),) * 3,
        probes=((),) * 3, expansions=(None,) * 3,
    )  # fmt: skip


def seeds(name, rise, noise=0.02, count=4, **settings):
    return [run(name, seed, rise, noise, **settings) for seed in range(count)]


def shown(comparison, width=100):
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(comparison_table(comparison))
    return out.getvalue()


def test_seeds_of_a_recipe_are_one_group_and_the_best_comes_first():
    comparison = compare_runs([*seeds("plain", 0.5), *seeds("replay", 0.2)])
    assert [(group.label, group.seeds) for group in comparison.groups] == [
        ("replay", (0, 1, 2, 3)),
        ("plain", (0, 1, 2, 3)),
    ]
    best, other = comparison.metrics["forgetting"]
    assert best.best
    rises = [
        r.matrix.nats_per_token[2][k] - r.matrix.nats_per_token[k][k] for r in seeds("replay", 0.2) for k in (0, 1)
    ]
    assert best.mean == pytest.approx(np.mean(rises))
    assert best.low < best.mean < best.high
    assert best.interval_over == "4 seeds"
    assert "paired t, 4 seeds" in other.test
    assert other.p_value < 1e-6  # the noise of a seed is the same on both sides: pairing removes it


def test_a_difference_inside_the_noise_is_called_so():
    quiet = [run("a", seed, 0.3, noise=0.2) for seed in range(4)]
    other = [run("b", seed + 10, 0.31, noise=0.2) for seed in range(4)]
    comparison = compare_runs([*quiet, *other])
    (estimate,) = [e for e in comparison.metrics["forgetting"] if not e.best]
    assert estimate.within_noise
    assert "Welch" in estimate.test
    assert "= p=" in comparison_markdown(comparison)


def test_single_runs_are_compared_over_documents_and_say_so():
    comparison = compare_runs([run("plain", rise=0.5), run("kept", rise=0.45)])
    best, other = comparison.metrics["ap"]
    assert best.interval_over == "documents"
    assert other.test == "documents only, one seed"
    assert other.p_value < 0.05  # the same documents on both sides: their own spread cancels
    assert best.high > other.low  # although the intervals overlap
    assert "one seed" in shown(comparison)


def test_the_same_run_twice_does_not_differ():
    comparison = compare_runs([run(), replace(run(), path="runs/again")])
    assert [group.label for group in comparison.groups] == ["plain", "plain #2"]
    assert all(e.p_value in (None, 1.0) for estimates in comparison.metrics.values() for e in estimates)


def test_one_seed_against_several_is_not_tested():
    comparison = compare_runs([*seeds("plain", 0.5), run("other", 0, 0.4)])
    (estimate,) = [e for e in comparison.metrics["forgetting"] if not e.best]
    assert estimate.p_value is None


def test_groups_of_one_recipe_are_named_by_what_was_changed():
    one = run(recipe={"inherit": {"alpha": 1.0}, "replay": {"share": 0.1}})
    other = run(rise=0.9, recipe={"inherit": {"alpha": 0.5}, "replay": {"share": 0.1}})
    assert [g.label for g in compare_runs([one, other]).groups] == ["plain", "plain (inherit.alpha=0.5)"]


def test_other_tokenizers_leave_bits_per_byte():
    comparison = compare_runs([run(), run("other", tokenizer="u", rise=0.4)])
    assert "tokenizers" in comparison.differences[0]
    assert not any(estimate.best for estimate in comparison.metrics["ap"])
    assert any(estimate.best for estimate in comparison.metrics["final_bits_per_byte"])


def test_other_streams_leave_cost():
    comparison = compare_runs([run(), run("other", flops=2e12, domains=("wiki", "code", "news"))])
    assert "only entries of code, news, wiki, and cost" in " ".join(comparison.differences)
    assert not any(e.best for name in ("ap", "final_bits_per_byte") for e in comparison.metrics[name])
    assert any(e.best for e in comparison.metrics["total_flops"])
    assert "averages over domains are not comparable, only cost" in compare_runs([run(), run(domains=("x", "y", "z"))]).differences[0]  # fmt: skip


def test_unequal_cost_and_unfinished_runs_are_said():
    comparison = compare_runs([run(), replace(run("dear", flops=3e12), unfinished=("03-law",))])
    text = " ".join(comparison.differences)
    assert "not at equal FLOPs: dear took 3.00 times those of plain" in text
    assert "runs/dear-0 is unfinished: 03-law" in text


def test_a_rise_not_told_apart_from_0_is_neither_good_nor_bad():
    history = run(rise=-0.1)
    for bounds, good in ((Interval(-0.2, 0.1), None), (Interval(-0.2, -0.1), True)):
        learned, kept, _ = tiles(history, {"forgetting": bounds})
        assert learned.good
        assert kept.good is good


def test_negative_figures_have_a_minus_and_names_keep_their_hyphen():
    text = "-0.598, -59.6 to -41.7, 01-news, 1e-14, a-5"
    assert true_minus(text) == "−0.598, −59.6 to −41.7, 01-news, 1e-14, a-5"


def test_recipes_are_compared_key_by_key_within_lists_too_and_nothing_is_cut():
    inherit = {"teacher": "previous", "alpha": 0.5, "schedule": "linear"}
    stages = [{"domain": "wiki", "tokens": 100}, {"domain": "news", "tokens": 100}]
    plain = run("plain", recipe={"name": "plain", "stages": stages})
    taught = run("taught", recipe={
        "name": "taught", "stages": [stages[0], {**stages[1], "expand": {"layers": 3}}], "inherit": inherit,
    })  # fmt: skip
    assert compare_runs([plain, taught]).recipe == {
        "stages.1.expand": ("off", "{layers: 3}"),
        "inherit": ("off", "{teacher: previous, alpha: 0.5, schedule: linear}"),
    }


def test_many_groups_fit_a_terminal():
    text = shown(compare_runs([run(f"method-{i}", rise=0.1 * i) for i in range(12)]), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"method-{i}" in text for i in range(12))


def test_files_stand_alone_and_escape_names(tmp_path):
    evil = "<img src=x>"
    comparison = compare_runs([run(evil), run("other", rise=float("inf"))])
    page = comparison_html(comparison)
    assert "<img" not in page
    assert own_script_only(page)
    write_comparison(comparison, tmp_path)
    data = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert {group["label"] for group in data["groups"]} == {evil, "other"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "comparison.json",
        "comparison.md",
        "comparison.tex",
        "index.html",
    }
