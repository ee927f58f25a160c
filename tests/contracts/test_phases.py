"""What holds for every phase of a stage, and what a new one needs: a class, and a place among the others."""

import pytest

from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import check_run, read_records
from lifelong.pipeline import commit, loop, phases, run_recipe
from lifelong.pipeline.phases.phase import PlannedTokens
from lifelong.pipeline.phases.training import Rows, TrainingPhase
from lifelong.plan import stages as plan_stages
from lifelong.plan.stages import plan_recipe
from lifelong.recipe import parse_recipe
from tests.support import Dies, recipe_data, write_domain


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phases")
    for name in ("sea", "farm"):
        write_domain(folder, name)
    data = recipe_data(folder, recover={"tokens": 600}, evaluate={"tokens": 300, "probes": 2, "probe_tokens": 100})
    for stage in data["stages"]:
        stage["tokens"] = 1500
    return parse_recipe(data)


class Anneal(TrainingPhase):
    """Some more steps on the stage's own text, at the end."""

    name = "anneal"
    folder = "annealed"

    def rows(self, stage, model):
        return Rows(self.planned(stage.recipe, stage.index).trained, stage.seed + 3, stage.corpus)

    def planned(self, recipe, index):
        return PlannedTokens(trained=500)


def with_anneal(patch):
    """PHASES with the new one behind the training, wherever it is used."""
    names = [phase.name for phase in phases.PHASES]
    at = names.index("train") + 1
    for module in (phases, commit, loop, plan_stages):
        patch.setattr(module, "PHASES", (*phases.PHASES[:at], Anneal(), *phases.PHASES[at:]), raising=True)


def test_names_are_labels_of_their_own():
    names = [phase.name for phase in phases.PHASES]
    assert len(set(names)) == len(names)


def test_a_phase_that_is_added_trains_is_charged_planned_and_resumed(recipe, tmp_path, monkeypatch):
    plain = plan_recipe(recipe).stages
    with monkeypatch.context() as patch:
        before = phases.PHASES
        with_anneal(patch)
        assert len(phases.PHASES) == len(before) + 1
        planned = plan_recipe(recipe).stages
        assert all(more.tokens > less.tokens for more, less in zip(planned, plain, strict=True))
        run_recipe(recipe, tmp_path / "whole")
        with pytest.raises(ZeroDivisionError):
            run_recipe(recipe, tmp_path / "killed", Dies(1, 2, "anneal"))
        run_recipe(recipe, tmp_path / "killed")
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    assert check_run(whole) == []
    for stage, record in zip(planned, read_records(whole)[1:], strict=True):
        assert record.cost["anneal"]["tokens"] >= 500
        assert stage.tokens == record.tokens
        assert (whole / "stages" / record.name / "losses.json").is_file()
    assert {point.phase for point in read_history(whole).train[1]} == {"recover", "train", "anneal"}
    assert (whole / "ledger.jsonl").read_bytes() == (killed / "ledger.jsonl").read_bytes()
