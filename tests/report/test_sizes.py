"""From nothing committed to a hundred domains: the report stays readable, and silent."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console

from lifelong.records import DomainLoss, LossMatrix
from lifelong.report import write_report
from lifelong.report.canvas import OKABE_ITO
from lifelong.report.charts import NAMED_LINES, line_style, nice_ticks
from lifelong.report.figures import DASHES, LEGEND_LINES
from lifelong.report.figures import line_style as figure_style
from lifelong.report.heatmap import GRID_SIDE, thinned
from lifelong.report.html import page
from lifelong.report.table import losses_table, run_tables
from lifelong.report.uncertainty import loss_interval
from lifelong.report.verdict import perplexity_of, verdict
from tests.report.generated import generated_history
from tests.report.test_report import history as small_history


def terminal(history, width=80):
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=False)
    for part in run_tables(history):
        console.print(part)
    return out.getvalue()


def test_a_hundred_domains_are_written_and_readable(tmp_path):
    history = generated_history(100, 100)
    write_report(history, tmp_path)  # matplotlib's warnings are errors here
    text = terminal(history)
    assert max(map(len, text.splitlines())) <= 80
    assert "domain-000" in text
    assert "70 of" in text
    html = (tmp_path / "index.html").read_text()
    assert html.count("<rect x=") == 101 * 100
    assert "100 domains</summary>" in html
    assert len(html) < 4_000_000


def test_a_thousand_stages_are_thinned_to_what_a_screen_holds():
    history = generated_history(3, 1000)
    html = page(history)
    rows = thinned(1001)
    assert f"{len(rows)} of 1001 rows" in html
    assert len(rows) <= GRID_SIDE
    assert rows[-1] == 1000
    assert "1000 rows</summary>" in html


@pytest.mark.parametrize("count", [0, 1, GRID_SIDE, GRID_SIDE + 1, 1000, 12345])
def test_thinning_keeps_the_last_and_no_more_than_fit(count):
    places = thinned(count)
    assert len(places) <= GRID_SIDE
    assert places == sorted(set(places))
    assert not count or places[-1] == count - 1
    assert count > GRID_SIDE or places == list(range(count))


@pytest.mark.parametrize("total", [2, 8, 9, NAMED_LINES, NAMED_LINES + 1, 100])
def test_no_two_lines_look_alike(total):
    assert len({line_style(index, total) for index in range(total)}) == total
    if total <= LEGEND_LINES:
        assert len({tuple(figure_style(index).values()) for index in range(total)}) == total
    assert len(OKABE_ITO) * len(DASHES) == LEGEND_LINES


@pytest.mark.parametrize(("width", "expected"), [(110, "(+0."), (90, "red: above"), (80, "learned in")])
def test_the_matrix_takes_the_form_that_fits(width, expected):
    text = terminal(generated_history(5, 5), width)
    assert expected in " ".join(text.split())
    assert max(len(line) for line in text.splitlines()) <= width


def test_a_diverged_run_is_reported(tmp_path):
    history = small_history(domains=("wiki", "law"), rows=((4.0, 6.0), (900.0, 3.5)))
    write_report(history, tmp_path)
    assert "hundredfold" in verdict(history)
    assert perplexity_of(900.0) == "> 1e304"
    assert "> 1e304" in terminal(history, 100)
    broken = small_history(domains=("wiki", "law"), rows=((4.0, 6.0), (float("nan"), 3.5)))
    write_report(broken, tmp_path)
    assert re.search(r"\bnan\b", terminal(broken, 100))


def test_a_run_with_only_its_initial_model_says_so(tmp_path):
    run = small_history(domains=("wiki", "law"))
    matrix = LossMatrix(run.matrix.domains, (), (), run.matrix.initial, ())
    empty = replace(
        run, matrix=matrix, stages=(), losses=(), train=(), probes=(), expansions=(), samples=(),
        unfinished=("00-wiki", "01-law"),
    )  # fmt: skip
    write_report(empty, tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "Nothing was learned yet" in text
    assert "Not committed yet: 00-wiki, 01-law" in text
    assert "unfinished" in terminal(empty)


def test_alpha_replay_and_budget_are_on_the_page():
    history = generated_history(4, 5)
    budget = {"domain-000": 0.02, "domain-003": 5.0}
    text = page(replace(history, recipe={"name": "generated", "budget": budget}))
    assert "inheritance rate" in text
    assert "Forgetting budget" in text
    assert "BROKEN" not in text.split("domain-003")[-1]
    assert "<h2" in text
    assert "Replay" in text
    assert "1,000<small>0.1%</small>" in text


def test_held_out_losses_carry_their_intervals_on_all_three_scales():
    loss = DomainLoss("wiki", 300.0, 100, 400, (60.0, 140.0, 100.0), (30, 40, 30))
    bounds = loss_interval(loss)
    assert 2.0 <= bounds.low < 3.0 < bounds.high <= 3.5  # no resample lies outside of its documents
    out = io.StringIO()
    Console(file=out, width=80).print(losses_table([loss, DomainLoss("law", 30.0, 10, 40)]))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert f"{bounds.low:.4f} to {bounds.high:.4f}" in text
    assert f"{3.0 / math.log(2) / 4:.4f}" in text
    assert "20.09" in text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.2, 9.1), (-0.01, 0.003), (0, 123_456_789), (5, 5)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = nice_ticks(low, high)
    assert len(ticks) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
