"""Laws of a plan: memory by part and sharding, disk and warnings, recipes whose base is still to come."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
from pathlib import Path

import pytest
import transformers

from lifelong.errors import InputError
from lifelong.expand import new_config
from lifelong.ledger.folder import parse_stage_model
from lifelong.lm.checkpoint import meta_model
from lifelong.lm.flops import num_parameters
from lifelong.pipeline import run_recipe
from lifelong.plan import Devices, Speed, plan_recipe, plan_tables, planned_devices, planned_speed
from lifelong.plan.disk import folder_bytes
from lifelong.plan.memory import SHARDINGS, Held, device_memory, parts_of
from lifelong.plan.step import StepSettings, step_memory
from lifelong.recipe import load_recipe, parse_recipe
from lifelong.recipe.files import known_recipes
from lifelong.train.arguments import training_arguments
from tests.support import WORDS, recipe_data, write_domain


@pytest.fixture
def cards(tmp_path):
    for name in WORDS:
        write_domain(tmp_path, name)
    return tmp_path


def config_of(family="llama", **sizes):
    shape = {"layers": 2, "hidden_size": 32, "heads": 2} | sizes
    return new_config(family, vocab_size=320, max_positions=64, **shape)


def memory_of(config, devices=None, *, objective="clm", teachers=(), low_precision=False, held=None, **train):
    train = {"use_cpu": True, "per_device_train_batch_size": 2, **train}
    arguments = training_arguments(train, output_dir=Path("unused"), max_steps=1, seed=0)
    return device_memory(
        config,
        arguments,
        devices or Devices(),
        objective=objective,
        length=64,
        teachers=teachers,
        low_precision=low_precision,
        held=held,
    )


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "objective"), [("gpt2", "clm"), ("llama", "clm"), ("bert", "mlm"), ("mixtral", "clm")]
)
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_parts_sum_to_the_total_in_every_sharding(family, objective, kind):
    for sharding in SHARDINGS:
        memory = memory_of(
            config_of(family), Devices(1 if sharding == "none" else 4, sharding, kind), objective=objective
        )
        assert memory.total == sum(parts_of(memory).values()) == memory.to_json()["total"]
        assert memory.weights > 0
        assert memory.moments > 0


@pytest.mark.parametrize("sharding", ["fsdp2", "zero2", "zero3"])
def test_memory_falls_with_the_devices_that_share_it_and_not_with_ddp(sharding):
    config, wide = config_of(hidden_size=64), {"gradient_accumulation_steps": 2}
    totals = [memory_of(config, Devices(count, sharding, "cuda"), **wide).total for count in (2, 4, 8, 16)]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < totals[0]
    ddp = {memory_of(config, Devices(count, "ddp", "cuda"), **wide).total for count in (2, 8)}
    assert len(ddp) == 1
    assert totals[-1] < ddp.pop()


def test_activations_are_not_sharded():
    config = config_of()
    parts = [memory_of(config, Devices(count, "fsdp2", "cuda")) for count in (2, 16)]
    assert parts[0].activations == parts[1].activations


def test_a_teacher_adds_its_own_bytes():
    config, teacher = config_of(), config_of(layers=1, hidden_size=16)
    without, taught = memory_of(config), memory_of(config, teachers=[teacher])
    size = 4 * sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(teacher).parameters())
    assert taught.teacher == size
    assert taught.head > without.head
    assert taught.total >= without.total + size


def test_weights_in_bfloat16_take_half_and_an_adapter_next_to_nothing():
    config = new_config("llama", vocab_size=512, max_positions=64, layers=2, hidden_size=64, heads=4)
    parameters = num_parameters(meta_model(config, "clm"))
    whole, low = memory_of(config), memory_of(config, held=Held("bfloat16"))
    assert (whole.weights, whole.moments) == (4 * parameters, 8 * parameters)
    assert (low.weights, low.moments) == (2 * parameters, 4 * parameters)
    lora = (("name", "lora"), ("rank", 2))
    adapted = memory_of(config, held=Held("float32", None, lora))
    added = adapted.weights - whole.weights
    assert 0 < added < 0.2 * whole.weights
    assert adapted.moments == 2 * added
    quantised = memory_of(config, held=Held("float32", "4bit", lora))
    assert quantised.weights < 0.75 * adapted.weights
    assert quantised.activations == adapted.activations


def test_a_tied_embedding_has_one_gradient():
    config = new_config("llama", vocab_size=2048, max_positions=64, layers=1, hidden_size=16, heads=2)
    config.tie_word_embeddings = True
    parameters = num_parameters(meta_model(config, "clm"))
    assert step_memory(config, StepSettings("clm", 1, 32)).gradients == 4 * parameters


def test_checkpointing_accumulation_and_low_precision_move_what_they_should():
    config = config_of(layers=6)
    plain = memory_of(config)
    # newer releases of transformers warn at the old name
    known = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    assert memory_of(config, **{name: True}).activations < 0.7 * plain.activations
    assert memory_of(config, gradient_accumulation_steps=4).gradients > plain.gradients
    low = memory_of(config, Devices(1, "none", "cuda"), low_precision=True)
    again = memory_of(config, Devices(1, "none", "cuda"), low_precision=True, **{name: True})
    assert again.activations < low.activations  # fused kernels are there when layers are computed again, too
    assert low.activations < memory_of(config, Devices(1, "none", "cuda")).activations


def test_activations_grow_with_the_square_of_the_length_in_eager_attention_only():
    def kept(attention, length):
        config = new_config("llama", vocab_size=320, max_positions=512, layers=2, hidden_size=32, heads=4)
        config._attn_implementation = attention
        return step_memory(config, StepSettings("clm", 1, length, "cuda", bf16=True)).kept

    assert kept("eager", 512) > 2 * kept("sdpa", 512)
    assert kept("eager", 512) / kept("eager", 256) > 2.5


def test_activations_are_those_of_the_published_formula():
    """34 + 5 a T / D bytes a token, channel and layer (Korthikanti et al. 2022, equation 2), GELU fused, dropout everywhere."""
    rows, length, width, heads = 2, 128, 64, 4

    def kept(layers):
        config = new_config(
            "gpt2",
            vocab_size=320,
            max_positions=length,
            layers=layers,
            hidden_size=width,
            heads=heads,
            activation_function="gelu",
        )
        config._attn_implementation = "eager"
        return step_memory(config, StepSettings("clm", rows, length, "cuda", bf16=True)).kept

    config = new_config("gpt2", vocab_size=320, max_positions=length, layers=1, hidden_size=width, heads=heads)
    block = transformers.AutoModelForCausalLM.from_config(config).transformer.h[0]
    low_weights = 2 * sum(p.numel() for p in block.parameters() if p.dim() == 2)  # autocast keeps a copy
    per_layer = kept(3) - kept(2) - low_weights
    published = rows * length * width * (34 + 5 * heads * length / width)
    # autocast keeps the residual stream, both inputs of a norm and the softmax in float32 where the paper has half precision
    assert published < per_layer < 1.5 * published


# --- disk and time --------------------------------------------------------------------------------------------


def test_planned_disk_is_what_a_run_writes(cards, tmp_path):
    recipe = parse_recipe(recipe_data(cards))
    plan = plan_recipe(recipe, text=True)
    out = tmp_path / "run"
    run_recipe(recipe, out)
    weights = sum(path.stat().st_size for path in out.glob("stages/*/model/*.safetensors"))
    assert plan.disk.models == pytest.approx(weights, rel=0.15)  # a small model: headers count
    assert plan.disk.heldout == pytest.approx(folder_bytes(out / "heldout"), rel=0.35)
    assert plan.disk.tokenised == pytest.approx(folder_bytes(out / ".cache" / "blocks"), rel=0.35)
    assert plan.disk.memory >= folder_bytes(out / "memory") / 2
    assert plan.disk.total == plan.disk.to_json()["total"]


def test_time_follows_from_speed_devices_and_share(cards):
    recipe = parse_recipe(recipe_data(cards))
    one = plan_recipe(recipe, speed=Speed(1e12, 0.5))
    total = sum(stage.flops + stage.evaluation_flops for stage in one.stages)
    assert one.seconds == pytest.approx(total / 0.5e12)
    assert plan_recipe(recipe, speed=Speed(1e12, 1.0)).seconds == pytest.approx(one.seconds / 2)
    assert plan_recipe(recipe).seconds is None
    json.dumps(one.to_json())


def test_measured_speed_times_real_steps(cards):
    data = recipe_data(cards)
    data["stages"] = data["stages"][:1]
    recipe = parse_recipe(data)
    plan = plan_recipe(recipe, speed=planned_speed(recipe, None, None, True))
    assert 0 < plan.seconds < 3600
    assert "measured here" in plan.speed.describe()


def test_devices_share_a_step_and_leave_the_training_as_it_is(cards):
    train = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "use_cpu": True}
    recipe = parse_recipe(recipe_data(cards, train=train))
    one, two, eight = (plan_recipe(recipe, Devices(n, "ddp" if n > 1 else "none", "cuda")) for n in (1, 2, 8))
    for stages in zip(one.stages, two.stages, eight.stages, strict=True):
        assert len({(stage.steps, stage.tokens, stage.flops) for stage in stages}) == 1
    micro = [plan.stages[0].memory.activations for plan in (one, two, eight)]
    assert micro[0] == micro[1] > micro[2]  # the accumulation is shared first, then the rows
    with pytest.raises(InputError, match=r"an optimizer step of 8 sequences .* cannot be divided among 3 processes"):
        plan_recipe(recipe, Devices(3, "ddp", "cuda"))


# --- warnings -------------------------------------------------------------------------------------------------


def warned(recipe, text=False):
    return "\n".join(plan_recipe(recipe, text=text).warnings)


def test_each_warning_is_given_where_it_is_due_and_only_there(cards):
    stages = [{"domain": str(cards / f"{name}.yaml"), "tokens": 20_000} for name in ("sea", "farm")]
    sound = recipe_data(cards, stages=stages)
    assert warned(parse_recipe(sound), text=True) == ""
    faults = {
        "no replay": {**sound, "replay": None},
        "longer than a tenth": {**sound, "train": {**sound["train"], "warmup_steps": 0.2}},
        "only 1 optimizer steps": {**sound, "stages": [stages[0] | {"tokens": 200}, stages[1]]},
        "`mode: online` keeps one anchor for all (Schwarz et al. 2018, arXiv 1805.06370)": {
            **sound,
            "stages": stages + [stages[1]] * 3,
            "methods": [{"name": "ewc"}],
        },
        "above the 0.003 of the previous stage": {
            **sound,
            "stages": [stages[0], stages[1] | {"train": {"learning_rate": 5e-3}}],
        },
    }
    for text, data in faults.items():
        found = warned(parse_recipe(data))
        assert text in found
        assert all(text.split()[-1] in line for line in found.splitlines())


def test_a_domain_that_the_tokenizer_takes_badly_is_named(cards):
    tokenizer = train_on(cards, "sea", cards / "tokenizer")
    strange = "".join(
        json.dumps({"text": " ".join(f"ζξψ{i * 7919 % 997}ωφ" for i in range(n, n + 50))}, ensure_ascii=False) + "\n"
        for n in range(60)
    )
    for split in ("train", "valid", "test"):
        (cards / f"town.{split}.jsonl").write_text(strange, encoding="utf-8")
    data = recipe_data(cards, tokenizer={"checkpoint": str(tokenizer)})
    data["stages"] = [{"domain": str(cards / f"{name}.yaml"), "tokens": 20_000} for name in ("sea", "town")]
    assert "town: the tokenizer makes" in warned(parse_recipe(data), text=True)
    data["stages"].reverse()
    assert "the tokenizer makes" not in warned(parse_recipe(data), text=True)


def train_on(cards, name, folder):
    from lifelong.stream.cards.domain import load_domain
    from lifelong.stream.tokenize import train_tokenizer

    train_tokenizer([load_domain(str(cards / f"{name}.yaml"))], vocab_size=300).save_pretrained(folder)
    return folder


def test_held_out_text_of_an_earlier_domain_in_a_later_one_is_named(cards):
    held = (cards / "sea.valid.jsonl").read_text()
    with (cards / "farm.train.jsonl").open("a") as stream:
        stream.write(held)
    data = recipe_data(cards)
    found = warned(parse_recipe(data), text=True)
    assert "6 of its first 66 documents are held-out text of sea (valid)" in found
    data["stages"] = [{"domain": str(cards / f"{name}.yaml"), "tokens": 20_000} for name in ("farm", "sea")]
    assert "held-out" not in warned(parse_recipe(data), text=True)


# --- errors, recipes and what is printed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((0, None, None), "--devices: at least 1, not 0"),
        ((4, "none", None), "--sharding none: is for one device, not 4"),
        ((4, "fsdp", None), "did you mean 'fsdp2'"),
        ((1, None, "gpu"), "kind of device"),
    ],
)
def test_invalid_devices_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        planned_devices(*options)


def test_invalid_speeds_are_refused(cards):
    recipe = parse_recipe(recipe_data(cards))
    for options, text in (
        ((-1.0, None, False), "--flops"),
        ((1e12, 40.0, False), "--mfu"),
        ((None, 0.4, False), "--mfu"),
        ((1e12, None, True), "give one of them"),
    ):
        with pytest.raises(InputError, match=text):
            planned_speed(recipe, *options)


def test_a_missing_base_is_planned_from_the_recipe_that_writes_it():
    plan = plan_recipe(load_recipe("ki/adapt-cs-20m"), Devices(8, "fsdp2", "cuda"))
    base = load_recipe("ki/base").model
    assert plan.stages[0].shape["layers"] == base.layers
    assert plan.stages[0].memory.teacher > 0
    assert any("planned from recipe ki/base" in note for note in plan.notes)
    unknown = load_recipe("ki/adapt-cs-20m", ["model.checkpoint=runs/never-heard-of/stages/00-x/model"])
    with pytest.raises(InputError, match="no known recipe is named 'never-heard-of'"):
        plan_recipe(unknown)
    with pytest.raises(InputError, match="has 1 stages, none of number 3"):
        plan_recipe(load_recipe("ki/adapt-cs-20m", ["model.checkpoint=runs/ki-base/stages/03-x/model"]))


@pytest.mark.parametrize("size", ["tiny/ours", "ki/two-domains"])
def test_packaged_recipes_are_planned_in_eighty_columns(size):
    from rich.console import Console

    plan = plan_recipe(load_recipe(size), Devices(8, "fsdp2", "cuda"), speed=Speed(4e14))
    console = Console(width=80, record=True, file=io.StringIO())
    for table in plan_tables(plan):
        console.print(table)
    printed = console.export_text()
    assert "GB of memory on one of 8 cuda devices, fsdp2" in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize("name", known_recipes())
def test_every_packaged_recipe_can_be_planned(name, monkeypatch, tmp_path):
    monkeypatch.setenv("LIFELONG_DATA", os.environ.get("LIFELONG_DATA", str(tmp_path)))
    recipe = load_recipe(name)
    if name.startswith("adapt-") or (recipe.model.checkpoint and parse_stage_model(recipe.model.checkpoint) is None):
        # a checkpoint of the hub, or of the corpora: planned where it can be had, one message where not
        with contextlib.suppress(InputError):
            plan_recipe(recipe)
        return
    assert len(plan_recipe(recipe, Devices(8, "fsdp2", "cuda")).stages) == len(recipe.stages)


def test_base_rate_of_a_run_that_is_there(cards, tmp_path):
    data = recipe_data(cards, tokenizer={"train": {"kind": "bpe", "vocab_size": 300}})
    data["stages"], data["train"] = data["stages"][:1], data["train"] | {"learning_rate": 1e-3}
    run_recipe(parse_recipe(data), tmp_path / "run")
    (model,) = (tmp_path / "run").glob("stages/*/model")
    onward = {key: value for key, value in data.items() if key not in ("tokenizer", "inherit")}
    onward |= {
        "watch": [str(cards / "sea.yaml")],
        "model": {"checkpoint": str(model)},
        "stages": [{"domain": str(cards / "farm.yaml"), "tokens": 20_000}],
    }
    assert warned(parse_recipe(onward)) == ""
    onward["train"] = onward["train"] | {"learning_rate": 2e-3}
    assert "above the 0.001 at which its base was trained" in warned(parse_recipe(onward))
    shutil.rmtree(tmp_path / "run")


def test_text_that_cannot_be_read_is_one_note_with_its_reason_in_full(monkeypatch):
    """Five cards that need the same variable, and the tokenizer that would be trained on the first of them."""
    monkeypatch.delenv("LIFELONG_DATA", raising=False)
    notes = [note for note in plan_recipe("small/unknown-horizon", text=True).notes if "not read" in note]
    assert [note.partition(":")[0] for note in notes] == ["wiki, news, reviews, bio, cs", "tokenizer"]
    assert all(note.endswith("export LIFELONG_DATA=/path/to/folder)") for note in notes)
