import json
from dataclasses import replace

import pytest

from lifelong.records import (
    ComputeLedger,
    Cost,
    DomainLoss,
    ExpansionReport,
    LossMatrix,
    RunHistory,
    Sample,
    StageRecord,
    TrainPoint,
)
from lifelong.report import matrix_json, write_report
from lifelong.report.compare import compare_runs
from lifelong.report.html import page
from lifelong.report.verdict import cells, check_expectations, verdict
from tests.report.pages import own_script_only

EVIL = "<script>alert('x')</script>"


def history(domains=("wiki", EVIL), rows=((4.0, 6.0), (4.3, 3.5)), unfinished=()):
    matrix = LossMatrix(
        domains,
        tuple(f"{i:02d}-{d}" for i, d in enumerate(domains)),
        tuple(range(len(rows))),
        (7.0,) * len(domains),
        rows,
    )
    cost = ComputeLedger({"train": Cost(1000, 1e12, 1e11, 2.0), "evaluate": Cost(0, 1e10, 0.0, 0.5)}).to_json()
    stages = tuple(
        StageRecord(
            i,
            matrix.stages[i],
            d,
            "p" * 64,
            "r",
            1000,
            {"layers": 2},
            10,
            cost,
            {},
            {"model": "m", "corpus": "c"},
            {},
            {},
            {},
        )
        for i, d in enumerate(domains)
    )
    losses = tuple(tuple(DomainLoss(d, n * 10, 10, 40) for d, n in zip(domains, row, strict=True)) for row in rows)
    growth = ExpansionReport("llama", "exact", {"layers": 2}, {"layers": 3}, 10, 15, 1e-14, 1e-6, 0.0)
    points = (
        TrainPoint("train", 1, 500, 5.0, 5.0, 0.1, 0.5),
        TrainPoint("train", 2, 1000, 4.0, 4.0, replay_tokens=200),
    )
    return RunHistory(
        name=f"run {EVIL}", path="runs/x", recipe={"name": "x", "description": EVIL, "expect": {"bwt": {"value": -0.3, "tolerance": 0.01}}},
        environment={"device": "cpu", "packages": {"torch": "2"}}, stages=stages, unfinished=unfinished, matrix=matrix, initial_losses=losses[0],
        losses=losses, train=(points,) * len(rows), probes=((),) * len(rows), expansions=(None, growth),
        samples=(Sample(-1, "wiki", EVIL, "text"), Sample(1, "wiki", EVIL, "more")),
    )  # fmt: skip


def test_the_page_stands_alone_and_escapes_everything():
    text = page(history())
    assert own_script_only(text)
    assert EVIL not in text
    assert "prefers-color-scheme:dark" in text
    assert "viewport" in text


def test_all_files_are_written_and_matrix_json_has_the_contracts_keys(tmp_path):
    write_report(history(), tmp_path)
    assert {"index.html", "report.md", "matrix.json", "report.tex", "domains.png", "training.png"} <= {
        p.name for p in tmp_path.iterdir()
    }
    data = json.loads((tmp_path / "matrix.json").read_text())
    assert LossMatrix.from_json(data) == history().matrix
    assert data["cost"]["tokens"] == 2000
    assert data["cost"]["flops"] == pytest.approx(2 * 1.01e12)


def test_the_verdict_names_the_worst_domain():
    assert "the worst is wiki (+0.300 nats" in verdict(history())
    kept = history(rows=((4.0, 6.0), (3.9, 3.5)))
    assert "Nothing was forgotten" in verdict(kept)


def test_cells_measure_against_the_best_since_learned():
    table = cells(history().matrix)
    assert table[1][0].trained
    assert table[1][1].rise is None
    assert table[2][0].rise == pytest.approx(0.3)


def test_expectations_are_relative_with_a_per_cent_sign_and_absolute_without():
    run = history()
    (item,) = check_expectations(run, {"bwt": -0.3005})
    assert item.met
    assert not check_expectations(run, {"bwt": -0.32})[0].met
    relative = replace(run, recipe={**run.recipe, "expect": {"bwt": {"value": -0.3, "tolerance": "10%"}}})
    assert check_expectations(relative, {"bwt": -0.32})[0].met
    assert not check_expectations(relative, {"bwt": None})[0].met


def test_an_unfinished_run_says_so():
    assert "Not committed yet: 02-law" in page(history(unfinished=("02-law",)))


def test_runs_of_different_streams_are_told_apart():
    one, other = history(), history(domains=("wiki", "law"))
    assert compare_runs([one, one]).differences == ()
    assert "domains" in compare_runs([one, other]).differences[0]
    assert matrix_json(one)["metrics"]["bwt"] == pytest.approx(-0.3)
