"""How often a step looks at numbers of the device: each look waits for everything that is still to be computed."""

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lifelong.inherit import loss_head
from lifelong.inherit.distiller import Distiller
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.teachers.model import OnlineTeacher
from lifelong.train.arguments import training_arguments
from lifelong.train.phase import TrainingInputs
from lifelong.train.stage_trainer import StageTrainer
from tests.expand.models import tiny

LOOKS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "equal"}


class Looks(TorchDispatchMode):
    """Operations whose result the host has to know, and copies to it, by the line that asks."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.places = []
        for name in ("cpu", "tolist", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, self._noted(getattr(torch.Tensor, name)))

    def _noted(self, method):
        def noted(tensor, *given, **named):
            self._note()
            return method(tensor, *given, **named)

        return noted

    def _note(self):
        lines = [line for line in traceback.extract_stack() if "/tests/" not in line.filename]
        ours = [line for line in lines if "/lifelong/" in line.filename or "/transformers/" in line.filename]
        self.places.append(f"{ours[-1].filename.rpartition('/')[2]}: {ours[-1].line}" if ours else "autograd")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.partition("::")[2]
        by_mask = name.startswith("index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        if name in LOOKS or by_mask:
            self._note()
        return func(*args, **(kwargs or {}))


def packed_batch():
    ids = torch.randint(3, 50, (2, 24), generator=torch.Generator().manual_seed(1))
    segments = torch.tensor([[1] * 9 + [2] * 15, [1] * 20 + [0] * 4])
    positions = torch.tensor([[*range(9), *range(15)], [*range(20), *range(4)]])
    labels = ids.masked_fill((positions == 0) | (segments == 0), -100)
    batch = {"input_ids": ids, "labels": labels, "segment_ids": segments, "position_ids": positions}
    return {**batch, "is_replay": torch.tensor([False, True]), "domain_ids": torch.tensor([1, 0])}


@pytest.mark.parametrize(("teaches", "most"), [(None, 2), ("all", 4), ("replay", 7)])
def test_a_micro_batch_looks_at_the_device_as_often_as_transformers_does(teaches, most, tmp_path, monkeypatch):
    """Once for the packing test of transformers and once for the predicted rows, in every model; to choose, again.

    Trainer's own step with the same model looks three times. The look at the gradient that flows in is of the CPU alone.
    """
    model = tiny("llama").train()
    distiller = None
    if teaches is not None:
        torch.manual_seed(3)
        teacher = OnlineTeacher(type(model)(model.config), "clm")
        distiller = Distiller(teacher, make_schedule("constant", alpha=0.5), on=teaches)
    arguments = training_arguments({"use_cpu": True}, output_dir=tmp_path, max_steps=1, seed=0)
    phase = TrainingInputs("train", [0], lambda rows: {}, "clm", 48, distiller, domains=("far", "near"))
    trainer = StageTrainer(model, arguments, phase)
    trainer.state.max_steps = 1
    with loss_head(model, "clm"):
        trainer.compute_loss(model, packed_batch(), num_items_in_batch=torch.tensor(40))
        with monkeypatch.context() as patch, Looks(patch) as looks:
            trainer.compute_loss(model, packed_batch(), num_items_in_batch=torch.tensor(40)).backward()
    places = [place for place in looks.places if "upstream" not in place]
    assert len(places) <= most, places
    trainer.reduce_counters()
    assert trainer.counter.replay_tokens == 2 * 20
    assert trainer.curve.replayed == {"far": 2 * 20}
