"""`evaluate` on a run: what the matrix has, any stage, text without a card, and scores that land in the report."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import transformers

import lifelong
from lifelong.errors import InputError, UnknownNameError
from lifelong.evaluate.cards import evaluate_cards
from lifelong.evaluate.harness import evaluate_with_harness
from lifelong.ledger.history import read_history
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from lifelong.report import write_report
from lifelong.report.downstream import score_columns
from tests.evaluate.test_downstream import write_task
from tests.support import recipe_data, run_cli, tiny_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory, cards):
    """Two stages from a checkpoint, with a length, a number of tokens and a split of its own."""
    folder = tmp_path_factory.mktemp("evaluate")
    tiny_checkpoint(folder / "base", cards)
    data = recipe_data(cards, model={"checkpoint": str(folder / "base")}, inherit=None)
    del data["tokenizer"]
    data |= {"sequence_length": 40, "evaluate": {"tokens": 500, "split": "test"}}
    run_recipe(parse_recipe(data), folder / "run")
    return folder / "run"


def test_a_run_is_evaluated_as_its_matrix_has_it(run):
    matrix = read_history(run).matrix
    rows = {"initial": matrix.initial, 0: matrix.nats_per_token[0], "01-farm": matrix.nats_per_token[1]}
    for stage, row in rows.items():
        losses = evaluate_cards(run, stage=stage)
        assert [loss.domain for loss in losses] == list(matrix.domains)
        assert [loss.nats_per_token for loss in losses] == pytest.approx(row, abs=1e-6)
    assert lifelong.evaluate(run, "farm")[0].nats_per_token == pytest.approx(matrix.nats_per_token[1][1], abs=1e-6)


def test_what_is_named_changes_what_is_measured(run, cards):
    own = evaluate_cards(run, [cards / "sea.yaml"])[0]
    assert evaluate_cards(run, [cards / "sea.yaml"], tokens=60)[0].tokens < own.tokens
    assert evaluate_cards(run, [cards / "sea.yaml"], split="valid")[0].nats != own.nats
    assert evaluate_cards(run, [cards / "law.yaml"])[0].domain == "law"
    assert evaluate_cards(run, sequence_length=20)[0].nats != own.nats


def test_a_file_without_a_card_is_read_as_a_card_would_read_it(run, cards, tmp_path):
    (by_file,) = evaluate_cards(run, files=[cards / "sea.test.jsonl"])
    assert by_file.domain == "sea"
    assert by_file.nats == pytest.approx(evaluate_cards(run, ["sea"])[0].nats)
    (tmp_path / "my notes.jsonl").write_text(json.dumps({"body": "ship and sail and harbour"}) + "\n")
    (found,) = evaluate_cards(run, files=[tmp_path / "my notes.jsonl"], text_field="body")
    assert (found.domain, found.bytes) == ("my-notes", 25)
    with pytest.raises(InputError, match="nothing-here"):
        evaluate_cards(run, files=[tmp_path / "nothing-here.jsonl"])


def test_wrong_stages_and_models_have_one_message(run, cards, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean '01-farm'"):
        evaluate_cards(run, stage="01-frm")
    with pytest.raises(InputError, match="is not a run folder; only a run has stages"):
        evaluate_cards(run / "stages/00-sea/model", stage=1)
    with pytest.raises(InputError, match="name domains"):
        evaluate_cards(run / "stages/00-sea/model")
    data = recipe_data(cards, inherit=None, replay=None)
    data["stages"] = [{**data["stages"][0], "tokens": 300}]
    data["tokenizer"]["train"]["vocab_size"] = 300
    run_recipe(parse_recipe(data), tmp_path / "random")
    with pytest.raises(InputError, match="started from random weights"):
        evaluate_cards(tmp_path / "random", stage="initial")


def test_a_base_that_was_changed_is_not_taken_for_the_initial_model(run):
    base = run.parent / "base"
    whole = (base / "model.safetensors").read_bytes()
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.lm_head.weight.data += 1
    model.save_pretrained(base)
    try:
        with pytest.raises(InputError, match="not those that the run started from"):
            evaluate_cards(run, stage="initial")
    finally:
        (base / "model.safetensors").write_bytes(whole)


@pytest.fixture
def harness(monkeypatch):
    """The two entrances of lm-evaluation-harness, with a score that depends on the model."""
    calls: list[dict] = []

    class TaskManager:
        all_tasks = ("arc_easy", "hellaswag")

        def __init__(self, include_path=None) -> None:
            self.include_path = include_path

        def match_tasks(self, names):
            return [name for name in names if name in self.all_tasks]

    def simple_evaluate(**options):
        calls.append(options)
        score = 0.25 if "stages" in options["model_args"]["pretrained"] else 0.5
        return {"results": {task: {"alias": task, "acc,none": score, "acc_stderr,none": 0.01} for task in options["tasks"]}}  # fmt: skip

    package, tasks = types.ModuleType("lm_eval"), types.ModuleType("lm_eval.tasks")
    package.simple_evaluate, tasks.TaskManager = simple_evaluate, TaskManager
    monkeypatch.setitem(sys.modules, "lm_eval", package)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    return calls


def test_scores_of_the_base_and_of_stages_are_columns_of_the_report(run, harness, tmp_path):
    task = write_task(tmp_path)
    evaluate_with_harness(str(run), ["arc_easy"])
    evaluate_with_harness(str(run), ["hellaswag"], limit=20)  # beside what is known already
    evaluate_with_harness(str(run), ["arc_easy"], stage="initial")
    assert harness[2]["model_args"]["pretrained"] == str(run.parent / "base")
    assert harness[2]["model_args"]["tokenizer"] == str(run / "initial/tokenizer")
    from lifelong.evaluate.downstream import FineTuning, evaluate_tasks
    from lifelong.evaluate.task import load_task

    evaluate_tasks(str(run), [load_task(task)], FineTuning(1e-3, epochs=1, seeds=1, length=16), stage="initial")
    history = read_history(run)
    columns = score_columns(history)
    assert columns["initial"]["arc_easy acc"] == "0.5 ± 0.01"
    assert columns["01-farm"] == {"arc_easy acc": "0.25 ± 0.01", "hellaswag acc, first 20": "0.25 ± 0.01"}
    assert "weather macro F1, %" in columns["initial"]
    assert "00-sea" not in columns
    page = write_report(history, tmp_path / "report")
    assert "hellaswag acc, first 20" in page.read_text()
    assert "| initial | 0.5 ± 0.01 |" in (tmp_path / "report/report.md").read_text()


def test_an_unknown_harness_task_is_one_message(run, harness, monkeypatch, capsys):
    assert run_cli(monkeypatch, "evaluate", run, "--harness", "arc_esay", "--stage", "initial") == 2
    assert "there is no harness task 'arc_esay'; did you mean 'arc_easy'?" in capsys.readouterr().err
    assert harness == []


def test_the_command_line_evaluates_a_stage_of_a_run(run, monkeypatch, capsys):
    assert run_cli(monkeypatch, "evaluate", run, "--stage", "0", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert [item["domain"] for item in figures] == ["sea", "farm"]
    assert figures[0]["nats_per_token"] == pytest.approx(read_history(run).matrix.nats_per_token[0][0], abs=1e-6)
    assert run_cli(monkeypatch, "evaluate", run, "--domain", "sea", "--harness", "arc_easy") == 2
    assert "name one of" in capsys.readouterr().err


def test_files_of_earlier_versions_are_read(run, harness):
    evaluate_with_harness(str(run), ["arc_easy"], stage="00-sea")
    path = Path(run / "harness/00-sea.json")
    data = json.loads(path.read_text())
    del data["limits"], data["sha256"]
    path.write_text(json.dumps({**data, "limit": 7}))
    assert "arc_easy acc, first 7" in score_columns(read_history(run))["00-sea"]
