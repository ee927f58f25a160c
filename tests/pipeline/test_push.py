"""A stage on the hub: what is sent, and what keeps it from being sent. The hub is a stand-in on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, RepoCard

from lifelong.errors import InputError
from lifelong.ledger.history import read_history
from lifelong.pipeline import run_recipe
from lifelong.pipeline.journal import Journal
from lifelong.pipeline.push import push_stage
from lifelong.recipe import parse_recipe
from lifelong.records import RunObserver
from lifelong.report.model_card import model_card
from lifelong.report.sources import forbids_sharing
from tests.support import recipe_data, run_cli


class Hub:
    """Keeps what it is sent, as HfApi names its calls."""

    def __init__(self):
        self.files, self.private = {}, None

    def create_repo(self, repository, *, private, exist_ok):
        self.private = private
        return f"https://hub.test/{repository}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.files |= {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}

    def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id):
        content = path_or_fileobj if isinstance(path_or_fileobj, bytes) else Path(path_or_fileobj).read_bytes()
        self.files[path_in_repo] = content


@pytest.fixture(scope="module")
def run(cards, tmp_path_factory):
    out = tmp_path_factory.mktemp("push") / "run"
    data = recipe_data(cards, watch=[str(cards / "town.yaml")], evaluate={"tokens": 600, "probes": 2})
    (cards / "farm.yaml").write_text((cards / "farm.yaml").read_text() + "citation: 'The farm, 1984'\n")
    data["stages"][1]["tokens"] = 2000
    data["train"]["report_to"] = "tensorboard"
    run_recipe(parse_recipe(data), out)
    return out


def test_the_model_the_card_and_the_report_are_sent(run):
    hub = Hub()
    assert push_stage(run, "me/tiny", api=hub, private=True) == "https://hub.test/me/tiny"
    assert hub.private is True
    assert {"model.safetensors", "config.json", "README.md", "report/index.html", "report/matrix.json"} <= set(
        hub.files
    )
    assert hub.files["model.safetensors"] == (run / "stages/01-farm/model/model.safetensors").read_bytes()


def test_the_card_is_one_that_the_hub_reads(run):
    card = RepoCard(model_card(read_history(run), 1))
    data = ModelCard(str(card)).data
    assert data.library_name == "transformers"
    assert data.license == "cc0-1.0"
    by_dataset = {
        result.dataset_name: result.metric_value
        for result in data.eval_results
        if result.metric_type == "nats_per_token"
    }
    history = read_history(run)
    assert by_dataset["farm"] == pytest.approx(history.matrix.nats_per_token[1][1], abs=1e-5)
    assert by_dataset["town"] == pytest.approx(history.matrix.watched_nats_per_token[1][0], abs=1e-5)
    assert "The farm, 1984" in card.text
    assert "from_pretrained" in card.text
    assert "lifelong init" in card.text
    assert (run / "stages/01-farm/README.md").read_text() == model_card(history, 1)


def test_the_card_of_an_earlier_stage_knows_nothing_of_later_ones(run):
    text = model_card(read_history(run), 0)
    assert "The farm, 1984" not in text
    assert "stage 1 of a stream" in text


def test_licences_are_in_ledger_and_report(run):
    history = read_history(run)
    assert history.sources["farm"] == {"source": "files", "licence": "CC0-1.0", "citation": "The farm, 1984"}
    assert history.sources["town"]["licence"] == "CC0-1.0", "a watched domain"
    assert "The farm, 1984" in (run / "report/index.html").read_text()
    assert all(peak > 1e6 for peak in history.peak_memory.values())


@pytest.mark.parametrize(("licence", "forbids"), [
    ("CC-BY-4.0", False), ("Apache-2.0", False), ("CC-BY-NC-4.0", True), ("cc_by_nc_sa_4.0", True), ("CC-BY-ND-4.0", True),
    ("research only", True), ("Proprietary", True), ("LicenseRef-announced", False), (None, False),
])  # fmt: skip
def test_licences_that_forbid_sharing(licence, forbids):
    assert forbids_sharing(licence) is forbids


def test_a_licence_that_forbids_it_is_said_before_anything_is_sent(run, monkeypatch):
    from dataclasses import replace

    history = read_history(run)
    forbidden = replace(history, sources={**history.sources, "sea": {"licence": "CC-BY-NC-4.0"}})
    monkeypatch.setattr("lifelong.pipeline.push.read_history", lambda _: forbidden)
    hub = Hub()
    with pytest.raises(InputError, match=r"sea: CC-BY-NC-4\.0.*nothing was sent.*--allow-licence"):
        push_stage(run, "me/tiny", api=hub)
    assert hub.files == {}
    push_stage(run, "me/tiny", api=hub, allow_licence=True)
    assert b"restricts what may be done" in hub.files["README.md"]


def test_wrong_names_stages_and_damaged_models_are_refused(run, tmp_path):
    for repository in ("tiny", "me/", "me/a/b", "../x"):
        with pytest.raises(InputError, match="ORGANISATION/NAME"):
            push_stage(run, repository, api=Hub())
    with pytest.raises(InputError, match="stages are 0 to 1, not 7"):
        push_stage(run, "me/tiny", 7, api=Hub())
    copy, hub = shutil.copytree(run, tmp_path / "run"), Hub()
    weights = copy / "stages/01-farm/model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"model\.safetensors.*nothing was sent"):
        push_stage(copy, "me/tiny", api=hub)
    assert hub.files == {}


def test_a_hub_that_refuses_is_one_message(run):
    class Full(Hub):
        def create_repo(self, *_, **__):
            raise OSError("no route to host")

    with pytest.raises(InputError, match="the hub refused: no route to host"):
        push_stage(run, "me/tiny", api=Full())


def test_metrics_grow_with_tokens_of_the_stream(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all({"time", "stage", "phase", "step", "tokens"} <= set(line) for line in lines)
    tokens = [line["tokens"] for line in lines]
    assert tokens == sorted(tokens)
    history = read_history(run)
    ends = [line for line in lines if line["phase"] == "evaluated"]
    assert [end["tokens"] for end in ends] == [0, history.stages[0].tokens, sum(s.tokens for s in history.stages)]
    assert set(ends[-1]["nats_per_token"]) == {"sea", "farm", "town"}
    from lifelong.metrics import compute_all

    metrics = compute_all(history.matrix)
    assert ends[-1]["metrics"]["ap"] == pytest.approx(metrics["ap"])
    assert ends[-1]["metrics"]["forgetting"] == pytest.approx(metrics["forgetting"])
    assert sum(line["phase"] == "grow" and "source" in line for line in lines) == 1


def test_trackers_get_evaluations_metrics_and_growth_by_tokens(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "trackers/evaluation"))
    events.Reload()
    series = {
        tag.removeprefix("train/"): [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    history = read_history(run)
    total = sum(record.tokens for record in history.stages)
    found = next(values for tag, values in series.items() if tag.endswith("town"))
    assert found[-1] == (total, pytest.approx(history.matrix.watched_nats_per_token[-1][0], abs=1e-5))
    assert any(tag.endswith("metric/ap") for tag in series)
    assert any(tag.endswith("growth/parameters") for tag in series)


def test_status_of_a_finished_run_and_of_one_that_goes_on(run, tmp_path, monkeypatch, capsys):
    assert run_cli(monkeypatch, "status", run) == 0
    assert "2 of 2 stages committed" in (shown := capsys.readouterr().out)
    assert "finished" in shown
    copy = shutil.copytree(run, tmp_path / "run")
    lines = (copy / "ledger.jsonl").read_text().splitlines(keepends=True)
    (copy / "ledger.jsonl").write_text("".join(lines[:-1]))
    shutil.rmtree(copy / "stages/01-farm")
    metrics = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(metrics) if '"cross_entropy"' in line)
    (copy / "metrics.jsonl").write_text("".join(metrics[: last + 1]) + '{"time": 1, "torn')
    assert run_cli(monkeypatch, "status", copy) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 stages committed" in shown
    assert "now: train of 01-farm" in shown
    assert "not running" in shown
    from lifelong.ledger.lock import hold

    with hold(copy / ".lock"):
        assert run_cli(monkeypatch, "status", copy, "--json") == 0
    assert json.loads(capsys.readouterr().out)["running"] is True


def test_the_journal_passes_on_everything_that_it_is_told():
    told = {name for name in vars(RunObserver) if not name.startswith("_")}
    assert told <= vars(Journal).keys()
