"""What a step needs once is done once, and a save no more often than it can be afforded."""

import concurrent.futures
import errno
import threading
import time

import pytest
import torch
from transformers import TrainerControl, TrainerState

from lifelong.files import read_json
from lifelong.inherit import loss_head
from lifelong.methods._method import Method
from lifelong.train import resume, stage_trainer
from lifelong.train.arguments import training_arguments
from lifelong.train.phase import TrainingInputs
from lifelong.train.stage_trainer import StageTrainer
from tests.expand.models import tiny


class Pull(Method):
    """Half the squares of the weights, and how often they were asked for."""

    calls = 0

    def loss_term(self, model):
        self.calls += 1
        return sum((parameter**2).sum() for parameter in model.parameters()) / 2


class PullOfBatch(Pull):
    term_of_batch = True


def rows(count):
    ids = torch.randint(3, 50, (count, 8), generator=torch.Generator().manual_seed(1))
    row = torch.arange(8).repeat(count, 1)
    labels = ids.masked_fill(row == 0, -100)
    flags = {"is_replay": torch.zeros(count, dtype=torch.bool), "domain_ids": torch.zeros(count, dtype=torch.long)}
    return {"input_ids": ids, "labels": labels, "segment_ids": torch.ones_like(ids), "position_ids": row, **flags}


def trainer_of(folder, method):
    model = tiny("llama")
    arguments = training_arguments({"use_cpu": True}, output_dir=folder, max_steps=4, seed=0)
    phase = TrainingInputs("train", [0], lambda found: {}, "clm", 32, None, methods=[method])
    trainer = StageTrainer(model, arguments, phase)
    trainer.state.max_steps = 4
    return trainer


@pytest.mark.parametrize(("method", "calls"), [(Pull(), 1), (PullOfBatch(), 4)])
def test_a_term_of_the_weights_is_computed_once_and_counts_as_in_every_micro_batch(method, calls, tmp_path):
    trainer, batch = trainer_of(tmp_path, method), rows(4)
    items = torch.tensor(28)
    with loss_head(trainer.model, "clm"):
        parts = [
            trainer.compute_loss(
                trainer.model, {name: value[i : i + 1] for name, value in batch.items()}, num_items_in_batch=items
            )
            for i in range(4)
        ]
        sum(parts).backward()
    assert method.calls == calls
    found = [parameter.grad.clone() for parameter in trainer.model.parameters()]
    trainer.model.zero_grad()
    with loss_head(trainer.model, "clm"):
        (trainer.model(**batch).loss + method.loss_term(trainer.model)).backward()
    for one, parameter in zip(found, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)


@pytest.mark.parametrize(("seconds", "saves"), [(0.1, True), (2.0, True), (10.0, False)])
def test_a_save_waits_until_it_is_a_fiftieth_of_the_time(seconds, saves, tmp_path):
    callback = stage_trainer._StageCallback(trainer_of(tmp_path, Pull()))
    callback.save_seconds, callback.last_saved = seconds, time.monotonic() - 130
    state, control = TrainerState(global_step=1, max_steps=4), TrainerControl()
    callback.on_step_end(None, state, control)
    assert control.should_save is saves


def test_a_checkpoint_becomes_whole_beside_training(tmp_path, monkeypatch):
    slow, folder = threading.Event(), tmp_path / "checkpoint-3"
    for name in ("checkpoint-1", "checkpoint-3", "checkpoint-9"):  # the last is being written
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_bytes(b"weights")
    monkeypatch.setattr(resume, "sync_tree", lambda _: slow.wait(5))
    writer, state = resume.CheckpointWriter(), {"curve": [1]}
    writer.complete(folder, state, [], kept=1)
    state["curve"].append(2)  # training goes on
    assert writer.is_busy
    assert (tmp_path / "checkpoint-1").is_dir()
    slow.set()
    writer.wait()
    assert not (tmp_path / "checkpoint-1").exists()
    assert resume.last_complete_checkpoint(tmp_path) == folder
    assert read_json(folder / "stage_state.json")["curve"] == [1]


def test_a_checkpoint_that_cannot_be_written_ends_the_training(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "checkpoint-1").mkdir()
    monkeypatch.setattr(resume, "sync_tree", full)
    trainer = trainer_of(tmp_path, Pull())
    trainer.checkpoints.complete(tmp_path / "checkpoint-1", {}, [], kept=1)
    concurrent.futures.wait([trainer.checkpoints._running])
    with pytest.raises(OSError, match="No space left"):
        stage_trainer._StageCallback(trainer).on_step_end(
            None, TrainerState(global_step=1, max_steps=4), TrainerControl()
        )
    trainer.checkpoints.close()
