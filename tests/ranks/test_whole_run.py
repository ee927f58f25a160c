"""The whole loop in several processes: what one process computes, whoever dies on the way."""

import pytest

from benchmarks.ranks import measure
from lifelong.ledger.ledger import check_run, read_records
from tests.ranks.launches import Job, difference, launch, order_of, start, write_recipe
from tests.ranks.worker import do

FLOAT32 = 2e-6


def assert_same(found):
    assert max(found.loss, found.probe, found.evaluation) < FLOAT32
    assert found.same_order
    assert found.same_replay
    assert found.same_cost


def test_a_killed_process_ends_all_and_one_process_resumes(two_processes, tmp_path):
    """Two processes train; the second dies at step 4 of the second stage; one goes on from the checkpoint of step 3."""
    recipe, run, ended = two_processes.recipe, two_processes.run, two_processes.ended
    do({"recipe": str(recipe), "out": tmp_path / "one", "order": tmp_path / "one-order", "mode": "ddp"})
    assert ended.exit_code != 0
    assert ended.ended_after is not None, ended.stderr
    assert len(ended.told) <= 1, ended.stderr
    assert [record.name for record in read_records(run)] == ["initial", "00-sea"]
    assert check_run(run) == []
    assert list((run / ".work").glob("01-farm/train-checkpoints/checkpoint-3/stage_state.json"))
    do({"recipe": str(recipe), "out": run, "order": order_of(run), "mode": "ddp"})
    assert_same(difference(tmp_path / "one", run))
    assert check_run(run) == []


@pytest.mark.slow
def test_all_refuse_together_with_one_message(tmp_path):
    """Before anything is written."""
    recipe = write_recipe(tmp_path, train={"per_device_train_batch_size": 7})
    refused = start(2, ["-m", "lifelong", "run", str(recipe), "--out", str(tmp_path / "run")])
    assert refused.exit_code != 0
    assert len(refused.told) == 1, refused.stderr
    assert "optimizer step of 7 sequences" in refused.told[0]
    assert "cannot be divided among 2 processes; start 1, or set" in refused.told[0]
    assert "exitcode  : 2 " in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_table_of_equalities(tmp_path):
    """DDP, FSDP2 and offload in 2 and 4 processes, killed ones continued by other numbers of them."""
    rows = measure(tmp_path)
    assert len(rows) > 10
    for row in rows:
        assert_same(row)
        assert row.exit_code != 0


@pytest.mark.slow
def test_what_a_model_writes_for_itself_is_the_same_in_two_processes(tmp_path):
    """One of them writes, both train on it with the targets that were stored."""
    section = {"memory_tokens": 0, "share": 0.5, "generate": {"tokens": "1k", "length": 32}}
    taught = {"teacher": "memory", "on": "replay", "alpha": 1.0, "schedule": "constant", "temperature": 1.0}
    recipe = write_recipe(tmp_path, replay=section, inherit=taught, recover={"tokens": 0})
    do({"recipe": str(recipe), "out": tmp_path / "one", "order": tmp_path / "one-order", "mode": "ddp"})
    launched = launch(2, [Job.at(recipe, tmp_path / "two")], tmp_path)
    assert launched.exit_code == 0, launched.stderr
    assert_same(difference(tmp_path / "one", tmp_path / "two"))
    # the model's own last bits are those of a sum over two processes: its fingerprint is another
    written = [
        {key: value for key, value in (read_records(tmp_path / name)[-1].generated or {}).items() if key != "model"}
        for name in ("one", "two")
    ]
    assert written[0]["samples"]
    assert written[0] == written[1]
