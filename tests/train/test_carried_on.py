"""What a stage hands to the next besides weights: raw weights beside their mean, moments, and old entries that stay."""

import shutil

import pytest
import torch
import transformers

from lifelong.errors import InputError
from lifelong.expand import ExpansionMap, grow, new_config, plan_expansion
from lifelong.files import read_json
from lifelong.ledger.ledger import check_run, read_records
from lifelong.lm.checkpoint import load_model
from lifelong.methods._grown_entries import GrownEntries
from lifelong.methods._running_mean import RunningMean, StageAverage
from lifelong.pipeline import run_recipe
from lifelong.plan import plan_recipe
from lifelong.recipe import parse_recipe
from lifelong.recipe.check import check_launch, check_recipe
from lifelong.train.carried_moments import CarriedMoments, grown_moments, read_moments
from tests.faults.kills import comparable
from tests.support import Dies, recipe_data, run_cli, tiny_checkpoint, write_domain


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    for name in ("sea", "farm", "law", "town"):
        write_domain(folder, name, documents=12)
    return folder


def data_of(cards, **changes):
    """Two stages of ten steps; the second grows, recovers and trains its new entries alone."""
    data = recipe_data(cards, inherit=None, evaluate={"tokens": 100, "samples": 0})
    for stage in data["stages"]:
        stage["tokens"] = 2560
    data["stages"][1]["expand"]["train"] = "new"
    data |= {
        "lr": {"policy": "infinite", "warmup": 0.1, "average": "50%"},
        "carry_optimizer": True,
        "recover": {"tokens": 512},
        "train": {**data["train"], "save_strategy": "steps", "save_steps": 3, "logging_steps": 1},
        **changes,
    }
    return {key: value for key, value in data.items() if value is not None}


@pytest.fixture(scope="module")
def finished(cards, tmp_path_factory):
    """A run; and copies of its raw weights and moments, which later stages replace."""
    out, kept = tmp_path_factory.mktemp("runs") / "run", tmp_path_factory.mktemp("kept")

    class Keeps(Dies):
        def stage_committed(self, record):
            shutil.copytree(out / "stages" / record.name / "trunk", kept / record.name)

    run_recipe(parse_recipe(data_of(cards)), out, Keeps(-9, 0))
    return out, kept


def weights(folder):
    return {name: value.detach() for name, value in load_model(folder, "clm").named_parameters()}


def test_a_run_that_is_killed_in_the_window_and_after_the_growth_ends_in_the_same_bits(finished, cards, tmp_path):
    out = tmp_path / "run"
    recipe = parse_recipe(data_of(cards))
    for stage, step, phase in ((0, 8, "train"), (1, 2, "recover"), (1, 9, "train")):
        with pytest.raises(ZeroDivisionError):
            run_recipe(recipe, out, Dies(stage, step, phase))
    run_recipe(recipe, out)
    assert comparable(out) == comparable(finished[0])
    assert check_run(out) == []


def test_the_mean_is_released_and_the_next_stage_starts_from_the_raw_weights(finished):
    out, kept = finished
    released, raw = weights(out / "stages/00-sea/model"), weights(out / "stages/00-sea/trunk")
    assert any(not torch.equal(released[name], raw[name]) for name in raw)
    mapping = ExpansionMap.from_json(read_json(out / "stages/01-farm/expansion.json")["map"])
    grown = mapping.apply_weights(weights(kept / "00-sea"))
    last = weights(out / "stages/01-farm/trunk")
    for name, is_new in mapping.masks():
        if name in last:
            assert torch.equal(last[name][~is_new], grown[name][~is_new]), name


def test_old_entries_stay_bit_for_bit_and_new_ones_learn(finished):
    out, kept = finished
    mapping = ExpansionMap.from_json(read_json(out / "stages/01-farm/expansion.json")["map"])
    grown, last = mapping.apply_weights(weights(kept / "00-sea")), weights(out / "stages/01-farm/model")
    moved = 0
    for name, is_new in mapping.masks():
        if name in last:
            assert torch.equal(last[name][~is_new], grown[name][~is_new]), name
            moved += int((last[name] != grown[name])[is_new].sum())
    new = sum(int(mask.sum()) for name, mask in mapping.masks() if name in last)
    assert moved > 0.8 * new  # the embeddings of tokens that the stage does not meet stay
    (note,) = [note for note in read_records(out)[-1].expansion["notes"] if note.startswith("trained:")]
    assert f"{new:,} of" in note
    assert "held bit for bit" in note
    assert "held bit for bit" in (out / "report/index.html").read_text()


def test_only_the_newest_moments_are_kept_and_a_later_stage_begins_with_them(finished):
    out, kept = finished
    assert not (out / "stages/00-sea/trunk/optimizer.safetensors").exists()
    assert check_run(out) == []
    before, after = (
        read_moments(path) for path in (kept / "00-sea/optimizer.safetensors",
                                        out / "stages/01-farm/trunk/optimizer.safetensors")
    )  # fmt: skip
    steps = {float(entry["step"]) for entry in before.values()}
    assert steps == {10.0}
    # ten steps, two of recovery, ten more: Adam's count goes on where the parameter is trained at all
    assert {float(entry["step"]) for entry in after.values()} == {22.0}


@pytest.fixture
def small():
    """A model in float64, and a batch of tokens."""
    torch.manual_seed(0)
    config = new_config(
        "llama", vocab_size=40, max_positions=32, layers=2, hidden_size=16, heads=2, intermediate_size=24
    )
    return transformers.AutoModelForCausalLM.from_config(config).double(), torch.randint(0, 40, (4, 12))


def test_moments_grow_like_the_moments_of_true_gradients(small):
    """Constant gradients: m = (1 - b1^t) g and v = (1 - b2^t) g^2 before, and so after the growth, with the map's g."""
    model, ids = small

    def gradients(of):
        of.zero_grad()
        of(input_ids=ids, labels=ids).loss.backward()
        return {name: value.grad.clone() for name, value in of.named_parameters()}

    old = gradients(model)
    grown, mapping, _ = grow(
        model, plan_expansion(model.config, hidden_size=32, heads=4, intermediate_size=40, layers=3)
    )
    true = gradients(grown)
    moments = {name: {"step": torch.tensor(5.0), "exp_avg": g, "exp_avg_sq": g**2} for name, g in old.items()}
    moved = grown_moments(moments, mapping, grown)
    masks = dict(mapping.masks())
    for name, entry in moved.items():
        kept = ~masks[name]
        if mapping.tensors[name].inserted:
            continue
        # transformers takes norms in float32, also of a model in float64: gradients of both agree to 1e-8
        assert torch.allclose(entry["exp_avg"][kept], true[name][kept], atol=1e-7), name
        assert torch.allclose(entry["exp_avg_sq"][kept], true[name][kept] ** 2, atol=1e-8), name
        assert float(entry["step"]) == 5
        assert bool((entry["exp_avg"][~kept] == 0).all())


def test_moments_are_written_and_read_as_they_are(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    carried = CarriedMoments()
    carried.optimizer = optimizer
    carried.write(model, tmp_path / "m.safetensors")
    read = read_moments(tmp_path / "m.safetensors")
    fresh = CarriedMoments(moments=read)
    fresh.optimizer = torch.optim.AdamW(model.parameters())
    fresh.begin_step(model, 0)
    for parameter in model.parameters():
        one, other = optimizer.state[parameter], fresh.optimizer.state[parameter]
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_rates_scale_the_step_of_each_entry(small):
    model, ids = small
    plan = plan_expansion(model.config, hidden_size=32, heads=4, intermediate_size=40, layers=3)

    def step(rates):
        grown, mapping, _ = grow(model, plan)
        before = {name: value.detach().clone() for name, value in grown.named_parameters()}
        if rates is not None:
            rates.begin(grown, mapping)
        optimizer = torch.optim.AdamW(grown.parameters(), lr=1e-2, weight_decay=0.1)
        grown(input_ids=ids, labels=ids).loss.backward()
        if rates is not None:
            rates.edit_gradients(grown)
        optimizer.step()
        if rates is not None:
            rates.end_step(grown)
            rates.end(grown)
        assert all(value.requires_grad for value in grown.parameters())
        return {name: value.detach() - before[name] for name, value in grown.named_parameters()}, dict(mapping.masks())

    plain, masks = step(None)
    scaled, _ = step(GrownEntries(old=0.25, new=2.0))
    for name, move in scaled.items():
        assert torch.allclose(move, torch.where(masks[name], 2.0, 0.25) * plain[name], atol=1e-12), name


@pytest.mark.parametrize(("steps", "share", "expected"), [(10, 0.5, 5), (10, 0.01, 1), (1, 0.2, 1), (10_000, 0.2, 50)])
def test_the_window_is_a_share_of_the_stage_and_its_last_weights_are_in_it(steps, share, expected):
    average = StageAverage(num_steps=steps, share=share)
    due = [done for done in range(1, steps + 1) if average.is_due(done)]
    assert len(due) == expected
    assert due[-1] == steps
    assert due[0] > steps - max(1, round(share * steps))


def test_a_running_mean_is_the_mean():
    torch.manual_seed(0)
    model, running, seen = torch.nn.Linear(4, 4), RunningMean(), []
    for _ in range(7):
        with torch.no_grad():
            model.weight.add_(torch.randn(4, 4))
        seen.append(model.weight.detach().clone())
        running.add(model)
    running.put_into(model)
    assert torch.allclose(model.weight, torch.stack(seen).mean(0), atol=1e-6)


def test_the_plan_counts_what_is_kept(cards):
    plain = plan_recipe(parse_recipe(data_of(cards, carry_optimizer=None, lr=None)))
    kept = plan_recipe(parse_recipe(data_of(cards)))
    assert kept.disk.carried_moments == 8 * sum(stage.parameters for stage in kept.stages)
    assert plain.disk.carried_moments == plain.disk.trunks == 0
    assert kept.stages[0].resumable_bytes - plain.stages[0].resumable_bytes == 4 * plain.stages[0].parameters
    assert any("one more float32 copy" in note for note in kept.notes)
    assert kept.stages[0].learning_rates[-1] == kept.stages[0].peak_learning_rate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": {"policy": "infinite", "average": "120%"}}, r"lr\.average: .*less than or equal to 1"),
        ({"lr": {"policy": "infinite", "average": 0}}, r"lr\.average: .*greater than 0"),
        ({"lr": {"policy": "infinite", "average": "100%"}}, r"lr: warmup, cooldown and average .*together at most 1"),
        ({"lr": {"policy": "rewarm", "average": "20%"}}, r"lr: average: .*rewarm .*choose policy infinite or wsd"),
        ({"lr": {"policy": "wsd", "average": 0.2, "decay": 0.1}}, r"lr: average and decay: .*leave one of them out"),
        ({"train": {"optim": "adafactor"}}, r"carry_optimizer: .*train\.optim is 'adafactor'"),
        ({"methods": [{"name": "lora"}], "lr": None}, r"carry_optimizer: methods\.lora trains parameters of its own"),
        ({"train": {"use_cpu": True, "fsdp": True}}, r"carry_optimizer: this run shards"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_or_averaged_is_one_message(cards, tmp_path, monkeypatch, capsys, changes, message):
    data = data_of(cards, recover=None, **changes)
    data["stages"][1].pop("expand")
    with pytest.raises(InputError, match=message):
        check_recipe(parse_recipe(data))


def test_moments_of_another_tokenizer_are_refused(cards, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "model", cards)
    data = data_of(cards, model={"checkpoint": str(checkpoint)}, recover=None)
    data["stages"][1].pop("expand")
    with pytest.raises(InputError, match=r"carry_optimizer: the moments of .* belong to its own tokenizer"):
        check_recipe(parse_recipe(data))
    check_recipe(parse_recipe({**data, "tokenizer": {"checkpoint": str(checkpoint)}}))


def test_what_a_growth_trains_is_checked(cards, tmp_path, monkeypatch, capsys):
    data = data_of(cards)
    data["stages"][1]["expand"] |= {"rates": {"old": 0.5}}
    with pytest.raises(InputError, match=r"stages\[1\]\.expand: `train: new` holds .*rates\.old"):
        parse_recipe(data)
    data["stages"][1]["expand"] = {"positions": 4096, "train": "new"}
    with pytest.raises(InputError, match=r"stages\[1\]\.expand: `train: new` .*adds nothing"):
        check_recipe(parse_recipe(data))
    path = tmp_path / "recipe.yaml"
    path.write_text(parse_recipe(data).to_yaml())
    assert run_cli(monkeypatch, "run", path, "--out", tmp_path / "run") == 2
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"stages\[1\]\.expand: train and rates"):
        check_launch(parse_recipe(data_of(cards, lr=None, carry_optimizer=None)))
