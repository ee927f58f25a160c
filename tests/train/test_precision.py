"""Weights in bfloat16: the step that trains them, and runs that hold, grow, resume and write them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lifelong.errors import InputError
from lifelong.files import read_json
from lifelong.ledger.ledger import read_records
from lifelong.lm.checkpoint import cast_weights, load_model, weights_fingerprint
from lifelong.lm.rounding import put_rounded
from lifelong.pipeline import extend_run, run_recipe
from lifelong.recipe import parse_recipe
from lifelong.records import RunObserver
from lifelong.train.stochastic_adamw import CHUNK, StochasticAdamW
from tests.support import Dies, recipe_data, tiny_checkpoint
from tests.trajectories.runs import comparable

LLAMA = {"family": "llama", "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 24}
GROWTH = {"layers": 2, "hidden_size": 24, "heads": 3}


@pytest.fixture(scope="module")
def checkpoint(cards, tmp_path_factory):
    """A causal model whose weights are stored in bfloat16."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), cards)
    model = load_model(folder, "clm")
    cast_weights(model, "bfloat16").save_pretrained(folder)
    return folder


def recipe(cards: Path, **changes):
    """Two short stages that save after every step; the second grows."""
    data = recipe_data(cards)
    stages = [{**stage, "tokens": 500} for stage in data["stages"]]
    stages[1]["expand"] = GROWTH
    train = {**data["train"], "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 1}
    base = {
        "stages": stages,
        "model": {**LLAMA, "dtype": "bfloat16"},
        "evaluate": {"tokens": 100, "samples": 0, "probes": 0},
        "replay": {"memory_tokens": 500, "share": 0.25},
        "train": train,
    }
    return parse_recipe({**data, **base, **changes})


def stored(folder: Path) -> set[torch.dtype]:
    return {value.dtype for value in load_file(folder / "model.safetensors").values()}


# --- the step ----------------------------------------------------------------------------------------------------------


def trained(dtype: torch.dtype, optimizer, steps: int = 20, size: int = 999) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.linspace(-2, 2, size).to(dtype))
    made = optimizer([weight])
    for step in range(steps):
        weight.grad = torch.randn(size, generator=torch.Generator().manual_seed(step)).to(dtype)
        made.step()
    return weight.detach()


def test_in_float32_it_is_adamw_to_the_bit():
    settings = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    own = trained(torch.float32, lambda weights: StochasticAdamW(weights, **settings))
    assert torch.equal(
        own, trained(torch.float32, lambda weights: torch.optim.AdamW(weights, foreach=False, **settings))
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rounding_is_right_in_the_mean_and_to_a_neighbour(sign):
    exact = torch.full((1 << 16,), sign * (1 + 1 / 1024))  # an eighth of the way to the next one
    target = torch.empty(exact.shape, dtype=torch.bfloat16)
    put_rounded([(target, exact)], torch.Generator().manual_seed(0))
    assert set(target.abs().tolist()) == {1.0, 1 + 1 / 128}
    spread = (1 / 128) * math.sqrt(1 / 8 * 7 / 8 / len(exact))
    assert abs(float(target.double().mean() - exact.double().mean())) < 4 * spread


@pytest.mark.parametrize("value", [0.0, 1.5, -3.0, float("inf"), -float("inf")])
def test_what_bfloat16_holds_stays(value):
    exact = torch.full((4096,), value)
    target = torch.empty(exact.shape, dtype=torch.bfloat16)
    put_rounded([(target, exact)], torch.Generator().manual_seed(0))
    assert torch.equal(target.float(), exact)


def test_steps_too_small_for_bfloat16_move_a_weight_in_the_mean():
    """400 steps of 1e-4 from 1.0: rounded to the nearest the weight would not move at all."""

    def moved(optimizer) -> float:
        weight = torch.nn.Parameter(torch.ones(1024, dtype=torch.bfloat16))
        made = optimizer([weight])
        for _ in range(400):
            weight.grad = torch.ones_like(weight)
            made.step()
        return float(weight.detach().double().mean())

    assert moved(lambda weights: torch.optim.AdamW(weights, lr=1e-4, weight_decay=0)) == 1.0
    assert moved(lambda weights: StochasticAdamW(weights, lr=1e-4)) == pytest.approx(0.96, abs=0.002)


def test_the_second_moment_decays_though_bfloat16_cannot_tell_a_thousandth():
    weight = torch.nn.Parameter(torch.ones(2048, dtype=torch.bfloat16))
    made = StochasticAdamW([weight], lr=0.0, betas=(0.9, 0.999))
    for gradient in (1.0, *[0.0] * 500):
        weight.grad = torch.full_like(weight, gradient)
        made.step()
    assert float(made.state[weight]["exp_avg_sq"].double().mean()) == pytest.approx(1e-3 * 0.999**500, rel=0.1)


def test_the_bits_depend_on_seed_and_step_alone(monkeypatch):
    def after(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.randint(1 << 30, ()).item())  # whatever the process has drawn before
        return trained(torch.bfloat16, lambda weights: StochasticAdamW(weights, lr=1e-3, seed=seed))

    assert torch.equal(after(1), after(1))
    assert not torch.equal(after(1), after(2))
    monkeypatch.setitem(CHUNK, "cpu", 100)
    assert not after(1).isnan().any()


def test_state_in_bfloat16_survives_being_saved():
    def run(resumed: bool) -> torch.Tensor:
        weight = torch.nn.Parameter(torch.linspace(-2, 2, 64).bfloat16())
        made = StochasticAdamW([weight], lr=1e-2, seed=3)
        for step in range(10):
            if resumed and step == 5:
                state, made = made.state_dict(), StochasticAdamW([weight], lr=1e-2, seed=3)
                made.load_state_dict(state)
                assert made.state[weight]["exp_avg"].dtype == torch.bfloat16
            weight.grad = torch.cos(torch.arange(64) + step).bfloat16()
            made.step()
        return weight.detach()

    assert torch.equal(run(False), run(True))


# --- runs --------------------------------------------------------------------------------------------------------------


class Noted(RunObserver):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, note: str) -> None:
        self.notes.append(note)


@pytest.fixture(scope="module")
def run(cards, tmp_path_factory):
    """Two stages in bfloat16, with a teacher, replay, a growth and carried moments."""
    out, seen = tmp_path_factory.mktemp("bf16") / "run", Noted()
    run_recipe(recipe(cards, carry_optimizer=True), out, seen)
    return out, seen


def test_weights_moments_and_checkpoints_are_bfloat16(run):
    out, _ = run
    for stage in ("00-sea", "01-farm"):
        assert stored(out / "stages" / stage / "model") == {torch.bfloat16}
        assert not (out / "stages" / stage / "trunk").exists()
    moments = load_file(out / "stages" / "01-farm" / "optimizer.safetensors")
    assert {value.dtype for name, value in moments.items() if not name.endswith("|step")} == {torch.bfloat16}


def test_it_learns_and_its_precision_is_recorded(run):
    out, _ = run
    records = read_records(out)
    assert all(record.notes[-1] == "weights are held and evaluated in bfloat16" for record in records)
    first, last = records[0].row["sea"], records[-1].row["sea"]
    assert last["nats_per_token"] < first["nats_per_token"] - 0.01
    growth = read_json(out / "stages" / "01-farm" / "expansion.json")
    assert growth["max_logit_difference_float64"] < 1e-10


def test_the_fingerprint_is_that_of_the_values_however_they_are_loaded(run):
    out, _ = run
    record = read_records(out)[-1]
    for dtype in ("float32", "auto"):
        model = load_model(out / "stages" / "01-farm" / "model", "clm", dtype=dtype)
        assert weights_fingerprint(model) == record.fingerprints["model"]


def test_a_killed_run_goes_on_to_the_same_bits(cards, run, tmp_path):
    whole, killed = run[0], tmp_path / "killed"
    data = recipe(cards, carry_optimizer=True)
    with pytest.raises(ZeroDivisionError):
        run_recipe(data, killed, Dies(1, 2))
    run_recipe(data, killed)
    assert comparable(killed) == comparable(whole)


def test_processors_without_the_units_are_told_the_measured_slowdown(cards, tmp_path, monkeypatch):
    from lifelong.train import rehearsal

    monkeypatch.setattr(rehearsal, "without_bfloat16_units", lambda **_: "there is no GPU")
    monkeypatch.setattr(rehearsal, "bfloat16_slowdown", lambda: 7.0)
    (note,) = rehearsal.slow_weights_note(use_cpu=True)
    assert "take 7 times as long as in float32" in note
    assert "--set model.dtype=float32" in note


def test_the_slowdown_is_a_ratio_of_times():
    from lifelong.train.rehearsal import bfloat16_slowdown

    assert 0.01 < bfloat16_slowdown(64) < 1000


def one_stage(cards, checkpoint, **model):
    stages = [{"domain": str(cards / "farm.yaml"), "tokens": 300}]
    return recipe(
        cards, model={"checkpoint": str(checkpoint), **model}, tokenizer=None, stages=stages, replay=None, inherit=None,
        carry_optimizer=True,
    )  # fmt: skip


def test_a_bfloat16_checkpoint_comes_out_as_it_came_in(cards, checkpoint, tmp_path):
    run_recipe(one_stage(cards, checkpoint, dtype="auto"), tmp_path / "run")
    stage = tmp_path / "run" / "stages" / "00-farm"
    assert stored(stage / "model") == {torch.bfloat16}
    assert read_json(stage / "model" / "config.json")["dtype"] == "bfloat16"
    assert not (stage / "trunk").exists()


def test_trained_in_float32_it_comes_out_in_bfloat16_and_goes_on_from_float32(cards, checkpoint, tmp_path):
    out = tmp_path / "run"
    run_recipe(one_stage(cards, checkpoint), out)
    stage = out / "stages" / "00-farm"
    masters, released = (load_file(stage / name / "model.safetensors") for name in ("trunk", "model"))
    assert {value.dtype for value in masters.values()} == {torch.float32}
    assert all(torch.equal(masters[name].bfloat16(), value) for name, value in released.items())
    assert any(not torch.equal(masters[name], value.float()) for name, value in released.items())
    assert (stage / "trunk" / "optimizer.safetensors").is_file()
    record = read_records(out)[-1]
    assert "as bfloat16 rounds it" in record.notes[-1]
    assert weights_fingerprint(load_model(stage / "model", "clm")) == record.fingerprints["model"]
    extend_run(out, cards / "sea.yaml", tokens=200)
    extended = out / "stages" / "01-sea"
    assert stored(extended / "model") == {torch.bfloat16}
    assert stored(extended / "trunk") == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"optim": "sgd"}}, r"train\.optim: 'sgd' rounds weights in bfloat16 to the nearest"),
        ({"train": {"fp16": True, "use_cpu": True}}, r"train\.fp16: scales gradients"),
        ({"train": {"optim": "adamw_torch_8bit"}}, r"optim_args: .* add optim_args: \"bf16_stochastic_round=True\""),
    ],
)
def test_what_would_lose_small_steps_is_refused(cards, tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        run_recipe(recipe(cards, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_float16_checkpoint_is_not_trained_in_its_own_precision(cards, checkpoint, tmp_path):
    folder = tmp_path / "half"
    model = load_model(checkpoint, "clm")
    cast_weights(model, "float16").save_pretrained(folder)
    with pytest.raises(InputError, match=r"model\.dtype: .* is stored in float16"):
        run_recipe(
            recipe(
                cards, model={"checkpoint": str(folder), "dtype": "auto"}, tokenizer={"checkpoint": str(checkpoint)}
            ),
            tmp_path / "run",
        )
