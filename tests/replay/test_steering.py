"""Replay that is steered while a stage trains: shares counted in what the model was shown, budgets kept and broken."""

import json
import shutil
from dataclasses import replace

import pytest

from lifelong.errors import ForgettingBudgetExceeded, InputError, UnknownNameError
from lifelong.ledger.ledger import check_run, read_records
from lifelong.pipeline import extend_run, run_recipe
from lifelong.recipe import parse_recipe
from lifelong.train import stage_trainer
from tests.support import Dies, recipe_data

NAMES = ("sea", "farm", "law")


def three_domains(cards, **changes):
    data = recipe_data(cards, inherit=None, **changes)
    data["stages"] = [{"domain": str(cards / f"{name}.yaml"), "tokens": 6000} for name in NAMES]
    del data["inherit"]
    return data


STEERED = {
    "budget": {"sea": "30%", "farm": "30%"},
    "replay": {"memory_tokens": 2000, "share": 0.1, "probes": 6, "min_share": 0.02, "max_share": 0.6},
}


def mixes(out, stage):
    (path,) = out.glob(f"stages/{stage:02d}-*/mix.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def steered(cards, tmp_path_factory):
    """A budgeted run, with every row that was trained on counted by the collator's own tensors."""
    out = tmp_path_factory.mktemp("runs") / "steered"
    shown = []
    compute_loss = stage_trainer.StageTrainer.compute_loss

    def counting(trainer, model, inputs, **kwargs):
        tokens_B = (inputs["segment_ids"] > 0).sum(1)
        replayed = {int(i): int(tokens_B[inputs["is_replay"] & (inputs["domain_ids"] == i)].sum()) for i in range(3)}
        shown.append((trainer.phase.dataset.stage_index, trainer.state.global_step, int(tokens_B.sum()), replayed))
        return compute_loss(trainer, model, inputs, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_trainer.StageTrainer, "compute_loss", counting)
        run_recipe(parse_recipe(three_domains(cards, **STEERED)), out)
    return out, shown


def test_replayed_blocks_follow_the_mix_to_one_block(steered):
    out, shown = steered
    for stage in (1, 2):
        segments = mixes(out, stage)
        due = replayed_so_far = 0.0
        by_domain, due_by_domain = [0.0] * 3, [0.0] * 3
        for _, step, tokens, replayed in [row for row in shown if row[0] == stage]:
            mix = [segment for segment in segments if segment["step"] <= step][-1]
            assert abs(sum(replayed.values()) - mix["share"] * tokens) < 32 + 1e-6
            due += mix["share"] * tokens
            replayed_so_far += sum(replayed.values())
            assert abs(replayed_so_far - due) < 32 + 1e-6
            for column, name in enumerate(NAMES[:stage]):
                by_domain[column] += replayed[column]
                due_by_domain[column] += mix["weights"][name] * sum(replayed.values())
        assert max(abs(a - b) for a, b in zip(by_domain, due_by_domain, strict=True)) < 2 * 32
    assert sum(read_records(out)[-1].replay.values()) == sum(sum(r.values()) for s, _, _, r in shown if s == 2)


def test_the_share_follows_the_probes_and_stays_within_its_bounds(steered):
    shares = [mix["share"] for mix in mixes(steered[0], 2)]
    assert len(shares) == 7
    assert len(set(shares)) > 1
    assert all(0.02 <= share <= 0.6 for share in shares)
    assert check_run(steered[0]) == []


@pytest.mark.parametrize(("stage", "step"), [(2, 18)])
def test_a_steered_run_that_was_killed_continues_to_the_same_bits(steered, cards, tmp_path, monkeypatch, stage, step):
    out = tmp_path / "run"
    recipe = parse_recipe(three_domains(cards, **STEERED))
    monkeypatch.setattr(stage_trainer, "SECONDS_BETWEEN_SAVES", 0.0)
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe, out, Dies(stage, step))
    run_recipe(recipe, out)
    for number in (1, 2):
        assert mixes(out, number) == mixes(steered[0], number)
    for folder in (out, steered[0]):
        assert (folder / "stages/02-law/model/model.safetensors").is_file()
    whole = [replace(r, parent="", committed_at="", cost={}, files={}) for r in read_records(steered[0])]
    assert [replace(r, parent="", committed_at="", cost={}, files={}) for r in read_records(out)] == whole


def test_a_budget_that_a_fixed_share_breaks_is_kept_when_it_steers(cards, tmp_path):
    budget = {"sea": "10%"}
    data = three_domains(cards, budget=budget, replay={"memory_tokens": 2000, "share": 0.02, "mix": "uniform"})
    data["stages"] = [{**stage, "tokens": 12_000} for stage in data["stages"][:2]]
    with pytest.raises(ForgettingBudgetExceeded, match=r"sea: perplexity rose by .*, the budget is 10.0%"):
        run_recipe(parse_recipe(data), tmp_path / "run")
    assert [record.name for record in read_records(tmp_path / "run")] == ["initial", "00-sea"]
    assert list((tmp_path / "run/rejected").glob("01-farm-*/model/model.safetensors"))
    first = (tmp_path / "run/stages/00-sea/model/model.safetensors").stat().st_mtime_ns

    other = parse_recipe({**data, "sequence_length": 64})
    with pytest.raises(InputError, match=r"belongs to another recipe; different: sequence_length"):
        run_recipe(other, tmp_path / "run")
    mended = {**data, "replay": {"memory_tokens": 2000, "share": 0.02, "mix": "budget", "probes": 10}}
    run_recipe(parse_recipe(mended), tmp_path / "run")
    assert [record.name for record in read_records(tmp_path / "run")] == ["initial", "00-sea", "01-farm"]
    assert (tmp_path / "run/stages/00-sea/model/model.safetensors").stat().st_mtime_ns == first
    assert max(mix["share"] for mix in mixes(tmp_path / "run", 1)) > 0.05
    assert check_run(tmp_path / "run") == []


def test_an_extension_that_exceeded_its_budget_can_be_amended(steered, cards, tmp_path):
    out = shutil.copytree(steered[0], tmp_path / "run")
    town = str(cards / "town.yaml")
    broken = ["budget.law=0.1%", "replay.mix=uniform", "replay.share=0.02"]
    with pytest.raises(ForgettingBudgetExceeded, match="law: perplexity rose by"):
        extend_run(out, town, tokens=8000, overrides=broken)
    with pytest.raises(InputError, match=r"belongs to another recipe; different: sequence_length"):
        extend_run(out, town, tokens=8000, overrides=["sequence_length=64"])
    extend_run(out, town, tokens=600, overrides=["budget.law=90%"])
    assert [record.name for record in read_records(out)][-1] == "03-town"
    assert read_records(out)[-1].tokens < 1000
    assert check_run(out) == []


def test_a_recipe_cannot_be_amended_unless_a_budget_was_exceeded(steered, cards):
    changed = parse_recipe(three_domains(cards, **{**STEERED, "replay": {**STEERED["replay"], "share": 0.3}}))
    with pytest.raises(InputError, match=r"belongs to another recipe; different: replay\.share"):
        run_recipe(changed, steered[0])


BAD = [
    (
        {"train": {"dataloader_num_workers": 2}, "replay": {"memory_tokens": 4000, "mix": "adaptive"}},
        InputError,
        "dataloader_num_workers: 2, but `replay.mix: adaptive`",
    ),
    ({"budget": {"see": "2%"}}, UnknownNameError, "there is no stage or watched domain 'see'; did you mean 'sea'"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_invalid_steering_is_refused_before_anything_is_written(cards, tmp_path, changes, error, message):
    with pytest.raises(InputError) as caught:
        run_recipe(parse_recipe(three_domains(cards, **changes)), tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"replay": {"mix": "budget"}}, "needs a budget"),
    ({"budget": {"sea": 0}}, "budget.sea: input should be greater than 0"),
    ({"replay": {"min_share": 0.6}}, "min_share 0.6 is greater than max_share 0.5"),
    ({"replay": {"mix": "budget", "share": 0.9}, "budget": {"sea": 0.1}}, "share 0.9 is outside min_share 0.01"),
    ({"replay": {"policy": "reservoire"}}, "replay.policy"),
])  # fmt: skip
def test_impossible_settings_are_refused(cards, changes, message):
    with pytest.raises(InputError) as caught:
        parse_recipe(three_domains(cards, **changes))
    assert message in str(caught.value)


def test_weights_multiply_what_the_mix_gives_a_domain(tmp_path):
    from types import SimpleNamespace

    from lifelong.replay.settings import ReplaySection
    from lifelong.replay.steering import ReplayInputs, first_weights

    seen = {"old": 300, "older": 100, "oldest": 100}
    memory = SimpleNamespace(domains=list(seen), seen_tokens_of=seen.__getitem__)

    def weights(mix):
        section = ReplaySection(weights={"older": 2.0, "oldest": 0.5}, mix=mix)
        found = first_weights(ReplayInputs(section, mix, {}, [], [], {}, 0), memory)
        return [found[name] / found["oldest"] for name in seen]

    assert weights("uniform") == pytest.approx([2, 4, 1])
    assert weights("proportional") == pytest.approx([6, 4, 1])
