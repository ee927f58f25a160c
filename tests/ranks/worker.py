"""One process of a launch, watched: which sequences each step held, and where it is to die.

    torchrun --nproc-per-node 2 tests/ranks/worker.py JOBS.json

The file holds a list of jobs, which the same processes do one after the other (starting them costs more than a small
run): recipe, run folder, how parameters lie (`ddp`, `fsdp2`, `fsdp2+offload`), a folder for the order of the sequences,
and rank and step of the second stage at which a process is killed.

accelerate shards over accelerators only. With `fsdp2` the processes say that they have one each, and it is the CPU:
everything behind that, in accelerate and in torch, is what runs on a machine with accelerators. With `fsdp2+offload`
parameters, gradients and moments rest on the CPU between uses, which here is where they are anyway; memory is not
pinned, for lack of a driver that could.
"""

import contextlib
import json
import os
import signal
import sys
import time
import zlib
from pathlib import Path
from unittest import mock

DIED = "died-at"
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_TORCH_DEVICE": "cpu",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
}


@contextlib.contextmanager
def launched_as(mode):
    """As if `accelerate launch` had started this process with such a configuration, on CPUs that are accelerators."""
    if mode == "ddp":
        yield
        return
    import torch.distributed.fsdp
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    import lifelong.train.arguments

    offload = {"FSDP_OFFLOAD_PARAMS": "true"} if mode == "fsdp2+offload" else {}
    with (
        mock.patch.dict(os.environ, FSDP2 | offload),
        mock.patch.object(PartialState, "_prepare_backend", return_value=("gloo", DistributedType.MULTI_GPU)),
        mock.patch.object(torch.distributed.fsdp.CPUOffloadPolicy.__init__, "__defaults__", (False,)),
        mock.patch.object(lifelong.train.arguments, "_has_accelerator", return_value=True),
    ):
        yield


@contextlib.contextmanager
def watched(order, die=None):
    """Write down every sequence with its step; end by SIGKILL in the second stage where that is asked for."""
    from lifelong import distributed
    from lifelong.inherit.teachers.model import OnlineTeacher
    from lifelong.train.stage_trainer import StageTrainer

    order.mkdir(parents=True, exist_ok=True)
    inner, shard, begin = StageTrainer.compute_loss, OnlineTeacher.shard, StageTrainer.shard_teacher

    def compute_loss(self, model, inputs, *args, **kwargs):
        step = self.state.global_step
        if die is not None and self.phase.tokens_before and [distributed.rank(), step] == list(die):
            (order / DIED).write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        rows = " ".join(str(zlib.crc32(row.numpy().tobytes())) for row in inputs["input_ids"].cpu())
        with (order / f"{distributed.rank()}.txt").open("a") as stream:
            stream.write(f"{self.phase.tokens_before}/{self.phase.name}/{step} {rows}\n")
        return inner(self, model, inputs, *args, **kwargs)

    def sharded(self, wrap):
        shard(self, wrap)
        (order / f"teacher-{distributed.rank()}").write_text(str(share_here(self.model)))

    def begins(self):
        # before the first forward: FSDP2 keeps the output embedding whole between a probe and the next backward
        (order / f"student-{distributed.rank()}").write_text(str(share_here(self.model)))
        begin(self)

    with (
        mock.patch.object(StageTrainer, "compute_loss", compute_loss),
        mock.patch.object(StageTrainer, "shard_teacher", begins),
        mock.patch.object(OnlineTeacher, "shard", sharded),
    ):
        yield


def share_here(model):
    """Part of a model's parameters that this process holds."""
    from torch.distributed.tensor import DTensor

    parameters = list(model.parameters())
    here = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters)
    return here / sum(p.numel() for p in parameters)


def do(job):
    """One run; or both stages of `tests/laws/stages.py` with some methods, where the job names a folder for them."""
    if job.get("methods"):
        from tests.ranks.methods import run_methods

        run_methods(Path(job["methods"]), job["names"])
        return
    from lifelong.pipeline import run_recipe

    with launched_as(job["mode"]), watched(Path(job["order"]), job.get("die")):
        run_recipe(job["recipe"], job["out"])


def main():
    """All runs of the file."""
    import torch

    from lifelong import distributed
    from lifelong.cli.terminal import quiet_libraries

    quiet_libraries()
    torch.set_num_threads(1)
    distributed.connect()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        do(job)
    distributed.disconnect()


if __name__ == "__main__":
    from lifelong.cli import entry as command

    command.app = lambda **_: main()
    command.main()  # errors end a run as they do on the command line
