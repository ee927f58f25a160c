"""One process of a launched run, watched: which sequences each step held, and where it is to die.

    torchrun --nproc-per-node 2 tests/ranks/worker.py [--fsdp2 | --offload] [--order DIR] [--die RANK,STEP] run RECIPE ...

accelerate shards over accelerators only. With `--fsdp2` the processes say that they have one each, and it is the CPU:
everything behind that, in accelerate and in torch, is what runs on a machine with accelerators. With `--offload`
parameters, gradients and moments rest on the CPU between uses, which here is where they are anyway; memory is not
pinned, for lack of a driver that could.
"""

import argparse
import os
import signal
import time
import zlib
from pathlib import Path

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


def pretend_accelerators(offload: bool) -> None:
    """Make accelerate and the loop take the CPU for an accelerator."""
    os.environ.update(FSDP2 | ({"FSDP_OFFLOAD_PARAMS": "true"} if offload else {}))
    import torch.distributed.fsdp
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    import lifelong.train.arguments

    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    torch.distributed.fsdp.CPUOffloadPolicy.__init__.__defaults__ = (False,)
    lifelong.train.arguments._has_accelerator = lambda: True


def watch(order: Path | None, die: tuple[int, int] | None) -> None:
    """Write down every sequence with its step; end by SIGKILL in the second stage where that is asked for."""
    from lifelong.train.stage_trainer import StageTrainer

    rank = int(os.environ.get("RANK", "0"))
    inner = StageTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        step = self.state.global_step
        if die is not None and self.phase.tokens_before and (rank, step) == die:
            if order is not None:
                (order / DIED).write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        if order is not None:
            order.mkdir(parents=True, exist_ok=True)
            rows = " ".join(str(zlib.crc32(row.numpy().tobytes())) for row in inputs["input_ids"].cpu())
            with (order / f"{rank}.txt").open("a") as stream:
                stream.write(f"{self.phase.tokens_before}/{self.phase.name}/{step} {rows}\n")
        return inner(self, model, inputs, *args, **kwargs)

    StageTrainer.compute_loss = compute_loss


def main() -> None:
    """Prepare the process, then be `lifelong`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fsdp2", action="store_true")
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--order", type=Path)
    parser.add_argument("--die", type=lambda text: tuple(map(int, text.split(","))))
    options, rest = parser.parse_known_args()
    import torch

    torch.set_num_threads(1)
    if options.fsdp2 or options.offload:
        pretend_accelerators(options.offload)
    watch(options.order, options.die)
    import sys

    from lifelong.cli import main as lifelong

    sys.argv = ["lifelong", *rest]
    lifelong()


if __name__ == "__main__":
    main()
