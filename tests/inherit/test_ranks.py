"""The loss inside the model's forward under DDP and FSDP2: two processes give what one gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from lifelong.inherit import loss_head
from lifelong.inherit.distiller import Distiller
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.teachers.model import OnlineTeacher
from tests.inherit.models import build, packed_batch

torch.set_num_threads(1)
rank, rendezvous, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)

def gradients(objective, wrap, tied):
    student = build(objective, 0, tie_word_embeddings=tied)
    batch = packed_batch(objective, rows=6)
    items = int((batch["labels"] != -100).sum())
    rows = slice(0, 2) if rank == 0 else slice(2, 6)  # uneven on purpose
    mine = {name: tensor[rows] for name, tensor in batch.items()}
    distiller = Distiller(OnlineTeacher(build(objective, 1), objective), make_schedule("constant", alpha=0.6), temperature=2.0)
    with loss_head(student, objective):
        if wrap == "ddp":
            model = DistributedDataParallel(student, find_unused_parameters=True)  # as Trainer does
        else:
            layers = student.model.layers if objective == "clm" else student.bert.encoder.layer
            for layer in layers:
                fully_shard(layer)
            model = fully_shard(student)
        inheritance = distiller.for_batch(mine, progress=0.0, step=0)
        loss = model(**mine, inheritance=inheritance, num_items=items).loss
        (loss * 2).backward()  # data parallelism averages what must be summed
    found = {}
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            found[name] = (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone()
    return found

result = {}
for case in (("clm", "ddp", True), ("clm", "fsdp2", False), ("mlm", "ddp", False), ("mlm", "fsdp2", True)):
    result[case] = gradients(*case)
if rank == 0:
    torch.save(result, out)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Gradients of every case from two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder / "meet"), str(folder / "out.pt")],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return torch.load(folder / "out.pt", weights_only=True)


CASES = [("clm", "ddp", True), ("clm", "fsdp2", False), ("mlm", "ddp", False), ("mlm", "fsdp2", True)]


@pytest.mark.parametrize(("objective", "wrap", "tied"), CASES)
def test_two_processes_give_the_gradient_of_one(two_ranks, objective, wrap, tied):
    from lifelong.inherit.teachers.model import OnlineTeacher
    from tests.inherit.models import build, packed_batch
    from tests.inherit.test_teachers import assert_same_gradients, distiller_of, gradients, ours

    student = build(objective, 0, tie_word_embeddings=tied)
    batch = packed_batch(objective, rows=6)
    ours(student, distiller_of(OnlineTeacher(build(objective, 1), objective)), batch, objective).backward()
    assert_same_gradients(two_ranks[objective, wrap, tied], gradients(student), 1e-6)
