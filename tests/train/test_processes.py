"""How a step is cut for several processes, what is passed on to Trainer, and what a launch is refused."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from lifelong import distributed
from lifelong.cli import main
from lifelong.errors import InputError, UnknownNameError, VerificationError
from lifelong.pipeline import run_recipe
from lifelong.recipe import parse_recipe
from lifelong.recipe.check import check_launch
from lifelong.train import arguments
from lifelong.train.arguments import check_processes, micro_batches, training_arguments
from tests.support import recipe_data, write_domain


@given(st.integers(1, 64), st.integers(1, 64), st.integers(2, 64))
def test_a_step_has_the_same_sequences_for_any_number_of_processes(size, accumulation, processes):
    section = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    if size * accumulation % processes:
        with pytest.raises(InputError, match=f"cannot be divided among {processes} processes"):
            micro_batches(section, processes)
        return
    cut = micro_batches(section, processes)
    assert math.prod(cut.values()) * processes == size * accumulation
    assert 1 <= cut["per_device_train_batch_size"] <= size


def test_accumulation_is_shared_before_the_batch_of_a_device():
    section = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 8}
    assert micro_batches(section, 8) == {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1}
    assert micro_batches(section, 32) == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    assert micro_batches(section, 1) == {}


@given(st.integers(0, 50), st.integers(1, 9))
def test_pieces_of_work_are_done_once_and_by_equally_many_calls(count, processes):
    taken = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed, "world_size", lambda: processes)
        for number in range(processes):
            patched.setattr(distributed, "rank", lambda number=number: number)
            taken.append(distributed.turns(count))
    assert sorted(place for own in taken for place, counts in own if counts) == list(range(count))
    assert len({len(own) for own in taken}) == 1
    assert all(0 <= place < count for own in taken for place, _ in own)


def test_a_single_process_needs_no_communication():
    assert distributed.run_on_main_process(lambda: 7) == 7
    assert (distributed.world_size(), distributed.rank(), distributed.is_main_process()) == (1, 0, True)
    assert distributed.summed([1.5, 2.0]).tolist() == [1.5, 2.0]


@pytest.mark.parametrize(
    "error", [VerificationError("budget"), InputError("card"), UnknownNameError("domain", "x", [])]
)
def test_an_error_of_the_first_process_is_the_same_in_the_others(error):
    same = distributed._same_error(type(error).__name__, str(error))
    assert str(same) == str(error)
    assert same.exit_code == error.exit_code
    assert isinstance(distributed._same_error("ZeroDivisionError", "x"), RuntimeError)


def test_keys_for_devices_are_passed_on_to_trainer(tmp_path):
    known = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    # the newer of two names that Trainer has for it
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    section = {
        "bf16": True, checkpointing: True, "torch_compile": True, "torch_compile_mode": "reduce-overhead",
        "ddp_find_unused_parameters": False, "optim": "adamw_torch_fused", "use_cpu": True,
    }  # fmt: skip
    made = training_arguments(section, output_dir=tmp_path, max_steps=3, seed=0)
    assert {key: getattr(made, key) for key in section if key != "optim"} == {
        key: value for key, value in section.items() if key != "optim"
    }
    assert made.optim == "adamw_torch_fused"


REFUSED = [
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, {}, True, "FSDP: version 1"),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, {}, False, "this machine has none"),
    ({}, {"fsdp": True}, False, "this machine has none"),
    ({}, {"fsdp": True, "fsdp_config": {"version": 1}}, True, "FSDP: version 1"),
    ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, {}, True, "ZeRO-3"),
    ({}, {"deepspeed": {"zero_optimization": {"stage": 3}}}, True, "ZeRO-3"),
]


@pytest.mark.parametrize(("environment", "section", "accelerator", "reason"), REFUSED)
def test_unsupported_use_is_refused_with_a_reason(monkeypatch, environment, section, accelerator, reason):
    monkeypatch.setattr(arguments, "_has_accelerator", lambda: accelerator)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=reason):
        check_processes(section)


def test_valid_input_is_accepted(monkeypatch, tmp_path):
    monkeypatch.setattr(arguments, "_has_accelerator", lambda: True)
    config = tmp_path / "zero2.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    check_processes({"deepspeed": str(config)})
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    check_processes({})


def test_a_sharded_launch_refuses_what_keeps_whole_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(arguments, "_has_accelerator", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    for changes, reason in (
        ({"lr": {"policy": "infinite"}}, r"lr\.policy: infinite keeps whole weights"),
        ({"methods": [{"name": "l2"}]}, r"methods\.l2: .*FSDP"),
    ):
        recipe = parse_recipe(recipe_data(tmp_path, **changes))
        with pytest.raises(InputError, match=reason):
            check_launch(recipe)


@pytest.mark.parametrize(("rank", "told"), [("0", True), ("1", False)])
def test_other_commands_refuse_several_processes(monkeypatch, capsys, rank, told):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sys.argv", ["lifelong", "list", "recipes"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert ("list: runs in one process, and 2 were launched" in capsys.readouterr().err) is told


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_stage_learns_what_a_plain_one_does(tmp_path):
    """The loss with a teacher, compiled as Trainer does it; the graph breaks where numbers of rows are read."""
    for name in ("sea", "farm"):
        write_domain(tmp_path, name, documents=12)
    data = recipe_data(tmp_path, evaluate={"tokens": 300, "samples": 0})
    data["stages"] = [{**stage, "tokens": 1024} for stage in data["stages"]]
    compiled = {**data, "train": {**data["train"], "torch_compile": True, "torch_compile_backend": "aot_eager"}}
    results = [run_recipe(parse_recipe(found), tmp_path / f"run{i}") for i, found in enumerate((data, compiled))]
    plain, other = (result.matrix.nats_per_token for result in results)
    assert [list(row) for row in other] == [pytest.approx(list(row), abs=1e-5) for row in plain]


LAUNCH = Path(__file__).parents[2] / "docs" / "how_to" / "launch"


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_of_the_how_to_are_what_accelerate_reads(path, monkeypatch):
    """Its own parser takes every key, and hands on an environment that a run does not refuse."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    given = launch_command_parser().parse_args(["--config_file", str(path), "--module", "lifelong", "run", "R"])
    settings, _, _ = _validate_launch_command(given)
    environment = prepare_multi_gpu_env(settings)
    assert settings.num_processes == 8
    assert settings.mixed_precision == "bf16"
    assert (environment.get("ACCELERATE_USE_FSDP") == "true") is path.stem.startswith("fsdp2")
    assert (environment.get("FSDP_OFFLOAD_PARAMS") == "true") is path.stem.endswith("offload")
    monkeypatch.setattr(arguments, "_has_accelerator", lambda: True)
    for name, value in environment.items():
        if name.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(name, value)
    check_processes({})
