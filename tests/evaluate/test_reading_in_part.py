"""Rows between the first and the last, which read a part of the held-out text and estimate the rest."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong.evaluate import settings
from lifelong.evaluate.perplexity import estimated_loss
from lifelong.evaluate.settings import BETWEEN_SHARE, EvaluateSection
from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import check_run
from lifelong.pipeline import run_recipe
from lifelong.pipeline.phases import evaluate
from lifelong.plan import plan_recipe
from lifelong.recipe import parse_recipe
from lifelong.records import DomainLoss
from lifelong.report.uncertainty import entry_intervals, metric_intervals
from lifelong.report.write import markdown, summarise
from tests.support import Dies, recipe_data


def loss_of(nats, tokens):
    return DomainLoss("sea", sum(nats), sum(tokens), 4 * sum(tokens), tuple(nats), tuple(tokens))


@given(
    st.lists(st.tuples(st.floats(0.5, 9.0), st.integers(1, 400)), min_size=2, max_size=30),
    st.floats(-0.4, 0.4),
    st.integers(1, 29),
)
def test_a_shift_that_all_documents_share_is_found_exactly(documents, shift, read):
    read = min(read, len(documents) - 1)
    tokens = [count for _, count in documents]
    before = loss_of([value * count for value, count in documents], tokens)
    now = loss_of([(value + shift) * count for value, count in documents], tokens)
    part = loss_of(now.document_nats[:read], tokens[:read])
    found = estimated_loss(part, whole=before)
    assert math.isclose(found.nats_per_token, now.nats_per_token, rel_tol=1e-12)
    assert math.isclose(found.bits_per_byte, now.bits_per_byte, rel_tol=1e-12)
    assert (found.tokens, found.tokens_read, found.is_whole) == (sum(tokens), sum(tokens[:read]), False)


def test_the_estimate_errs_less_than_a_reading_of_the_part_alone():
    drawn = random.Random(0)
    tokens = [drawn.randint(20, 300) for _ in range(60)]
    hard = [drawn.gauss(4.0, 1.0) for _ in tokens]
    errors, plain = [], []
    for _ in range(200):
        order = drawn.sample(range(60), 60)
        counts = [tokens[i] for i in order]
        before = loss_of([hard[i] * tokens[i] for i in order], counts)
        now = loss_of([(hard[i] + drawn.gauss(0.3, 0.1)) * tokens[i] for i in order], counts)
        part = loss_of(now.document_nats[:8], counts[:8])
        errors.append(estimated_loss(part, whole=before).nats_per_token - now.nats_per_token)
        plain.append(part.nats_per_token - now.nats_per_token)
    assert abs(np.mean(errors)) < 3 * np.std(errors) / math.sqrt(len(errors))
    assert np.std(errors) < np.std(plain) / 5


def test_other_documents_are_not_compared():
    assert estimated_loss(loss_of([3.0], [2]), whole=loss_of([3.0, 4.0], [3, 2])) is None


@pytest.mark.parametrize("domains", [2, 20, 60])
def test_a_row_between_costs_a_fiftieth_of_its_stage(domains):
    stage = 10_000_000
    read = EvaluateSection().tokens_between(stage, domains)
    assert read * domains / 3 <= BETWEEN_SHARE * stage
    assert EvaluateSection(tokens=20_000).tokens_between(stage, domains) is None


@pytest.fixture
def small(monkeypatch):
    """The shares of a real run, at the size of a test."""
    for name, value in (("FEWEST_BETWEEN", 50), ("FEWEST_TOKENS", 600), ("BETWEEN_SHARE", 1e-3)):
        monkeypatch.setattr(settings, name, value)
    monkeypatch.setattr(evaluate, "FEWEST_DOCUMENTS", 1)


def recipe_of(cards, **changes):
    stages = [{"domain": str(cards / f"{name}.yaml"), "tokens": 1500} for name in ("sea", "farm", "law")]
    changes = {"inherit": None, "replay": None, "evaluate": {"samples": 0}, **changes}
    return parse_recipe({**recipe_data(cards, **changes), "stages": stages, "watch": [str(cards / "town.yaml")]})


def test_a_run_reads_whole_rows_first_and_last(cards, small, tmp_path):
    whole = recipe_of(cards, evaluate={"tokens": 600, "samples": 0})
    run_recipe(whole, tmp_path / "whole")
    recipe = recipe_of(cards, budget={"sea": "100%"})
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe, tmp_path / "part", Dies(2, 4))
    run_recipe(recipe, tmp_path / "part")
    history, full = read_history(tmp_path / "part"), read_history(tmp_path / "whole")
    read = [{loss.domain: loss.is_whole for loss in row} for row in history.measured_losses]
    assert all(all(row.values()) for row in (read[0], read[3]))
    assert read[1] == {"sea": True, "farm": False, "law": False, "town": False}
    assert read[2] == {"sea": True, "farm": True, "law": False, "town": False}  # sea has a budget
    for row, true in zip(history.measured_losses, full.measured_losses, strict=True):
        for loss, other in zip(row, true, strict=True):
            assert loss.tokens == other.tokens
            assert loss.nats_per_token == pytest.approx(other.nats_per_token, abs=0 if loss.is_whole else 0.1)
            if not loss.is_whole:
                assert 50 <= loss.tokens_read < loss.tokens
    assert history.stages[0].cost["evaluate"]["flops"] < 0.6 * full.stages[0].cost["evaluate"]["flops"]
    assert not check_run(tmp_path / "part")
    says_what_was_estimated(history, tmp_path / "part")


def says_what_was_estimated(history, run):
    summarise(run)
    assert "After 2 stages, 00-sea to 01-farm, the domains" in markdown(history)
    assert "read in part" in (run / "report/index.html").read_text()
    entries = entry_intervals(history)
    assert all(entry is not None for row in entries for entry in row)
    for column, value in enumerate(history.matrix.nats_per_token[1]):
        assert entries[2][column].low < value < entries[2][column].high
    assert metric_intervals(history)["forgetting"] is not None


def test_a_plan_counts_what_is_read(cards, small):
    def planned(recipe):
        return [stage.evaluation_flops for stage in plan_recipe(recipe).stages]

    part, full = planned(recipe_of(cards)), planned(recipe_of(cards, evaluate={"tokens": 600, "samples": 0}))
    assert part[2] == full[2]
    assert part[1] < 0.6 * full[1]
