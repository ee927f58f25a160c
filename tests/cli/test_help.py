"""What a newcomer meets: help at 80 columns, options after the verb, names that are near, what was written and where."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from lifelong import __version__
from lifelong.cli import app
from lifelong.cli.terminal import state
from tests.support import recipe_data, run_cli, write_domain

VERBS = [
    *([verb] for verb in ["init", "run", "status", "extend", "plan", "report", "evaluate", "merge", "expand", "push", "check", "list", "schema"]),
    *(["recipe", verb] for verb in ("show", "copy")),
    *(["cache", verb] for verb in ("write", "prune")),
    *(["domain", verb] for verb in ("add", "list", "show", "check")),
    *(["federate", verb] for verb in ("simulate", "serve", "join")),
]  # fmt: skip


def shown(*arguments):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_of_a_verb_fits_80_columns_and_ends_with_an_example(verb):
    text = shown(*verb, "--help")
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.split("Options:")[0].split("\n\n")[1], "the summary is whole"
    assert "-v, --verbose" in text
    assert f"Example: lifelong {' '.join(verb)}" in text
    if "--out" in text:
        assert re.search(r"--out [A-Z]+ ", text), "the value of an option is named"
    assert not [line for line in text.splitlines() if "<str>" in line or "<path>" in line or "<int>" in line]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_argument_and_option_says_what_it_is(verb):
    command = get_command(app)
    for name in verb:
        command = command.commands[name]
    assert [parameter.name for parameter in command.params if not parameter.help] == []


def test_summaries_of_all_verbs_are_whole():
    text = shown("--help")
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.split("Commands:")[1]
    assert "with settings that fit this machine's memory by plan's figures." in " ".join(text.split())


def test_the_version(monkeypatch, capsys):
    assert run_cli(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.strip() == __version__


def test_verbose_stands_before_and_after_the_verb(monkeypatch):
    for arguments in (("-v", "list", "tasks"), ("list", "tasks", "-v")):
        monkeypatch.setattr(state, "verbose", False)
        assert run_cli(monkeypatch, *arguments) == 0
        assert state.verbose


@pytest.mark.parametrize("what", ["domains", "families", "methods", "metrics", "recipes", "tasks"])
def test_every_name_has_a_line_of_what_it_is(monkeypatch, capsys, what):
    assert run_cli(monkeypatch, "list", what, "--json") == 0
    entries = json.loads(capsys.readouterr().out)
    assert entries
    assert [entry["name"] for entry in entries if not entry["description"]] == []


def test_a_refusal_names_three_and_not_all(monkeypatch, capsys):
    assert run_cli(monkeypatch, "run", "small/replai") == 2
    error = capsys.readouterr().err
    assert "did you mean 'small/replay'?" in error
    assert error.count("/") <= 4
    assert "in all" in error


def test_a_shipped_recipe_is_shown_whole_and_copied(monkeypatch, capsys, tmp_path):
    assert run_cli(monkeypatch, "recipe", "show", "tiny/ewc", "--set", "seed=7") == 0
    data = yaml.safe_load(capsys.readouterr().out)
    assert data["seed"] == 7
    assert data["methods"][0]["name"] == "ewc"
    assert "base" not in data
    path = tmp_path / "mine.yaml"
    assert run_cli(monkeypatch, "recipe", "copy", "tiny/ours", path) == 0
    capsys.readouterr()
    assert run_cli(monkeypatch, "recipe", "show", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["inherit"]["on"] == "all"
    assert run_cli(monkeypatch, "recipe", "copy", "tiny/ours", path) == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize(("change", "message"), [
    ("replay.shere=0.2", "--set replay.shere: unknown key; did you mean 'share'?"),
    ("stages.0.tokens=lots", "--set stages[0].tokens: "),
    ("expect={perplexity: {value: 1}}", "--set expect: there is no metric 'perplexity'"),
])  # fmt: skip
def test_what_is_wrong_with_set_points_at_set(monkeypatch, capsys, change, message):
    assert run_cli(monkeypatch, "run", "tiny/replay", "--set", change) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("change", "reason"), [
    ("train.report_to=dagshub", "train.report_to: dagshub is not installed here"),
    ("train.optim=adamm", "train.optim: there is no 'adamm'; did you mean '"),
    ("train.use_liger_kernel=true", "train.use_liger_kernel: cannot be used here"),
    ("train.bf16=true", "train.bf16: there is no GPU, and this processor has no bfloat16 units"),
    ("train.push_to_hub=true", "train.push_to_hub: cannot be used here"),
    ("train.eval_on_start=true", "train.eval_on_start: cannot be used here"),
])  # fmt: skip
def test_train_options_that_cannot_work_are_one_message(monkeypatch, capsys, tmp_path, change, reason):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert run_cli(monkeypatch, "run", "tiny/replay", "--set", change, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert reason in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_seeds_are_runs_of_their_own_then_a_comparison_and_a_promise_that_is_not_kept_ends_with_3(
    monkeypatch, capsys, tmp_path
):
    write_domain(tmp_path, "sea")
    data = recipe_data(tmp_path, expect={"ap": {"value": 1.0, "tolerance": "1%"}})
    data["stages"] = [{**data["stages"][0], "tokens": 1000}]
    data |= {"replay": None, "inherit": None}
    data["tokenizer"]["train"]["vocab_size"] = 300
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data))
    assert run_cli(monkeypatch, "run", tmp_path / "r.yaml", "--out", tmp_path / "runs", "--seeds", "2") == 3
    out, error = capsys.readouterr()
    assert "seed-0: expected ap = 1 ± 1%, it is " in error
    assert "seed-1: expected" in error
    assert out.startswith("tiny: 1 stages, 1,000 tokens, into ")
    assert "comparison: " in out
    assert (tmp_path / "runs/comparison/index.html").is_file()
    assert [p.name for p in sorted((tmp_path / "runs").iterdir())] == ["comparison", "seed-0", "seed-1"]
    assert run_cli(monkeypatch, "report", tmp_path / "runs/seed-0") == 3
    assert "expected ap = 1 ± 1%, it is " in capsys.readouterr().err
    assert run_cli(monkeypatch, "report", tmp_path / "runs/seed-0", "--latex") == 0
    assert capsys.readouterr().out.count(r"\begin{tabular}") == 2


def test_a_local_hub_folder_and_its_splits_are_taken_from_where_one_stands(monkeypatch, capsys, tmp_path):
    data = tmp_path / "text"
    data.mkdir()
    for split in ("train", "validation"):
        lines = [json.dumps({"text": f"the {split} of {number} has a wave and a ship in it"}) for number in range(30)]
        (data / f"{split}.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "domain", "add", "waves", "--hub", "text", "--valid", "validation", "--json") == 0
    assert json.loads(capsys.readouterr().out)["documents"]["valid"] == 30
    card = yaml.safe_load((tmp_path / "domains/waves.yaml").read_text())
    assert card["source"]["valid"] == "validation"
    assert run_cli(monkeypatch, "domain", "add", "x", "--hub", "text", "--valid", "a", "--valid", "b") == 2
    assert "the name of one split" in capsys.readouterr().err
