"""What a real run hands to its report: replay by domain, probes with their cost, trackers; and what is tampered with."""

from __future__ import annotations

import json
import shutil

import pytest

from lifelong.errors import CorruptionError
from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import check_run
from lifelong.metrics import compute_run
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from lifelong.report import altered_matrix, matrix_json
from lifelong.report.curves import life_curves, stage_spans
from tests.support import recipe_data, run_cli, write_domain


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three stages without growth, probed, with TensorBoard."""
    folder = tmp_path_factory.mktemp("reports")
    for name in ("sea", "farm", "law"):
        write_domain(folder, name)
    data = recipe_data(folder, evaluate={"tokens": 600, "probes": 3, "probe_tokens": 200}, inherit=None)
    data["stages"] = [{"domain": str(folder / f"{name}.yaml"), "tokens": 3000} for name in ("sea", "farm", "law")]
    data["train"] = {**data["train"], "report_to": "tensorboard"}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
        run_recipe(parse_recipe(data), folder / "run")
    return folder / "run"


def test_replay_is_counted_by_domain(run):
    first, second, third = read_history(run).stages
    assert first.replay == {}
    assert set(second.replay) == {"sea"}
    assert set(third.replay) == {"sea", "farm"}
    assert sum(third.replay.values()) == pytest.approx(0.25 * third.tokens, rel=0.1)


def test_probes_begin_with_the_model_as_the_stage_finds_it(run):
    history = read_history(run)
    points = history.probes[1]
    at_start = {point.domain: point for point in points if point.tokens == 0}
    assert set(at_start) == {"sea", "farm"}
    last = {point.domain: point for point in history.probes[0]}
    assert at_start["sea"].nats_per_token == pytest.approx(last["sea"].nats_per_token, abs=1e-6)
    assert compute_run(history)["stability_gap"] is not None


def test_probes_take_no_step_of_the_training_curve_away(run):
    for points in read_history(run).train:
        assert [point.step for point in points] == [2, 4, 6, 8, 10, 12]


def test_probes_have_their_cost_and_are_no_part_of_training(run):
    for record, points in zip(read_history(run).stages, read_history(run).probes, strict=True):
        assert record.cost["probe"]["flops"] > 0
        assert record.cost["probe"]["seconds"] > 0
        assert record.cost["probe"]["tokens"] == 0
        assert sum(point.evaluated_tokens for point in points) > 0


def test_curves_meet_the_full_evaluations_at_both_ends_of_a_stage(run):
    history = read_history(run)
    spans = stage_spans(history)
    for column, curve in enumerate(life_curves(history).values()):
        ends = dict(curve.points)
        for span, row in zip(spans, history.matrix.nats_per_token, strict=True):
            assert ends[span.end] == row[column]
        tokens = [x for x, _ in curve.points]
        assert tokens == sorted(set(tokens))
        assert len(curve.points) > len(curve.ends)


def test_trackers_get_every_domain_as_a_series_and_survive_the_run(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert {path.name for path in (run / "trackers").iterdir()} == {
        "00-sea-train",
        "01-farm-train",
        "02-law-train",
        "evaluation",
    }
    events = EventAccumulator(str(run / "trackers/02-law-train"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"eval/probe/sea", "eval/probe/farm", "eval/probe/law", "train/loss", "train/stream_tokens"} <= tags
    points = [point for point in read_history(run).probes[2] if point.domain == "sea"]
    logged = [event.value for event in events.Scalars("eval/probe/sea")]
    assert logged == pytest.approx([point.nats_per_token for point in points], abs=1e-5)
    assert max(event.value for event in events.Scalars("train/stream_tokens")) > 6000
    assert check_run(run) == []


def test_changed_losses_are_not_reported(run, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    path = copy / "stages/01-farm/losses.json"
    losses = json.loads(path.read_text())
    losses[0]["nats"] *= 0.5
    path.write_text(json.dumps(losses))
    with pytest.raises(CorruptionError, match=r"losses\.json: its content differs from what was committed"):
        read_history(copy)
    assert run_cli(monkeypatch, "report", copy) == 2
    assert "losses.json" in capsys.readouterr().err


def test_a_changed_matrix_is_found_by_its_hash_and_made_again(run, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    path = copy / "report/matrix.json"
    assert altered_matrix(copy / "report") == ""
    data = json.loads(path.read_text())
    assert data["ledger"] == read_history(copy).head
    data["metrics"]["forgetting"] = 0.0
    path.write_text(json.dumps(data))
    assert run_cli(monkeypatch, "check", copy) == 2
    assert "matrix.json: its content differs from what was written" in capsys.readouterr().err
    assert run_cli(monkeypatch, "report", copy) == 0
    assert "made again" not in capsys.readouterr().out
    assert run_cli(monkeypatch, "check", copy) == 0
    assert json.loads(path.read_text()) == json.loads(json.dumps(matrix_json(read_history(copy))))


def test_an_unfinished_run_reports_what_there_is(run, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    lines = (copy / "ledger.jsonl").read_text().splitlines(keepends=True)
    (copy / "ledger.jsonl").write_text("".join(lines[:-1]))
    shutil.rmtree(copy / "stages/02-law")
    assert run_cli(monkeypatch, "report", copy) == 0
    assert "unfinished: 02-law" in " ".join(capsys.readouterr().out.split())
    assert "Not committed yet: 02-law" in (copy / "report/index.html").read_text()


def test_merge_and_comparison_from_the_command_line(run, tmp_path, monkeypatch, capsys):
    assert run_cli(monkeypatch, "merge", run, "--weight", "0.5", "--out", tmp_path / "half", "--stage", "1") == 0
    assert "half of" in capsys.readouterr().out or (tmp_path / "half/config.json").is_file()
    assert run_cli(monkeypatch, "merge", run, "--weights", "0,1", "--json") == 0
    assert [point["weight"] for point in json.loads(capsys.readouterr().out)["points"]] == [0.0, 1.0]
    assert run_cli(monkeypatch, "merge", run, "--weight", "0.5") == 2
    assert run_cli(monkeypatch, "merge", tmp_path, "--weights", "0") == 2
    assert run_cli(monkeypatch, "evaluate", run) == 0
    assert "held-out loss" in capsys.readouterr().out
    assert run_cli(monkeypatch, "report", run, run, "--out", tmp_path / "both") == 0
    assert (tmp_path / "both/index.html").is_file()
