"""The whole loop in several processes: what one process computes, whoever dies on the way."""

import json

import pytest

from lifelong.ledger import check_run, read_records
from tests.ranks.launches import difference, launch, order_hash, write_recipe

FLOAT32 = 2e-6


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The recipe, and its run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    recipe = write_recipe(folder)
    done = launch(recipe, folder / "run", 1, order=folder / "order")
    assert done.exit_code == 0, done.stderr
    return recipe, folder


def assert_same(alone, out, order):
    _, folder = alone
    found = difference(folder / "run", out)
    assert max(found.loss, found.probe, found.evaluation) < FLOAT32
    assert found.same_replay
    assert found.same_cost
    assert order_hash(folder / "order") == order_hash(order)
    assert check_run(out) == []


def test_a_killed_process_ends_all_and_one_process_goes_on(alone, tmp_path):
    """Two processes train; the second dies at step 4 of the second stage; one goes on from the checkpoint of step 3."""
    recipe, _ = alone
    ended = launch(recipe, tmp_path / "run", 2, die=(1, 4), order=tmp_path / "order")
    assert ended.exit_code != 0
    assert len(ended.told) <= 1, ended.stderr
    assert [record.name for record in read_records(tmp_path / "run")] == ["initial", "00-sea"]
    assert check_run(tmp_path / "run") == []
    assert list((tmp_path / "run" / ".work").glob("01-farm/train-checkpoints/checkpoint-3/stage_state.json"))
    resumed = launch(recipe, tmp_path / "run", 1, order=tmp_path / "order")
    assert resumed.exit_code == 0, resumed.stderr
    assert_same(alone, tmp_path / "run", tmp_path / "order")


def test_all_refuse_together_with_one_message(alone, tmp_path):
    """Before anything is written."""
    recipe, _ = alone
    refused = launch(recipe, tmp_path / "run", 3, module=True)
    assert refused.exit_code != 0
    assert len(refused.told) == 1, refused.stderr
    assert "optimizer step of 8 sequences" in refused.told[0]
    assert "cannot be divided among 3 processes; start 1 or 2 or 4" in refused.told[0]
    assert refused.stderr.count("exitcode  : 2 ") >= 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "first", "then"), [("ddp", 4, 2), ("ddp", 2, 4), ("fsdp2", 2, 4), ("fsdp2", 4, 2)])
def test_any_number_of_processes_goes_on(alone, tmp_path, mode, first, then):
    recipe, _ = alone
    ended = launch(recipe, tmp_path / "run", first, mode, die=(0, 7), order=tmp_path / "order")
    assert ended.exit_code != 0
    assert check_run(tmp_path / "run") == []
    resumed = launch(recipe, tmp_path / "run", then, mode, order=tmp_path / "order")
    assert resumed.exit_code == 0, resumed.stderr
    assert_same(alone, tmp_path / "run", tmp_path / "order")


@pytest.mark.slow
@pytest.mark.parametrize("on", ["all", "replay"])
def test_parameters_in_parts_and_offloaded_give_the_same(tmp_path, on):
    """A teacher that teaches replay alone is idle in one process while it runs in another."""
    recipe = write_recipe(tmp_path, inherit={"alpha": 0.5, "until": 0.5, "on": on})
    assert launch(recipe, tmp_path / "run", 1, order=tmp_path / "order").exit_code == 0
    done = launch(recipe, tmp_path / "parts", 2, "fsdp2+offload", order=tmp_path / "other")
    assert done.exit_code == 0, done.stderr
    assert_same((recipe, tmp_path), tmp_path / "parts", tmp_path / "other")


@pytest.mark.slow
def test_a_masked_model_with_a_parameter_that_nothing_reads(tmp_path):
    """Untied BERT keeps one; DDP waits for its gradient unless it looks for such."""
    model = {"family": "bert", "layers": 1, "hidden_size": 24, "heads": 2, "intermediate_size": 40}
    model["config"] = {"tie_word_embeddings": False, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    recipe = write_recipe(tmp_path, model=model, objective="mlm")
    assert launch(recipe, tmp_path / "run", 1, order=tmp_path / "order").exit_code == 0
    done = launch(recipe, tmp_path / "two", 2, order=tmp_path / "other")
    assert done.exit_code == 0, done.stderr
    assert_same((recipe, tmp_path), tmp_path / "two", tmp_path / "other")


@pytest.mark.slow
def test_steered_replay_is_the_same_in_every_process(tmp_path):
    """Probes are shared, so that all processes choose the same mix."""
    recipe = write_recipe(tmp_path, replay={"memory_tokens": 2000, "share": 0.25, "mix": "adaptive", "probes": 3})
    assert launch(recipe, tmp_path / "run", 1, order=tmp_path / "order").exit_code == 0
    done = launch(recipe, tmp_path / "two", 2, order=tmp_path / "other")
    assert done.exit_code == 0, done.stderr
    mixes = [next((tmp_path / run / "stages").glob("01-*/mix.json")) for run in ("run", "two")]
    assert len(json.loads(mixes[0].read_text())) > 1
    assert_same((recipe, tmp_path), tmp_path / "two", tmp_path / "other")
