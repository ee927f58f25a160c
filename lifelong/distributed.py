"""Multi-process runs, as `torchrun` and `accelerate launch` start them.

Everything that is written is written by the first process. What it alone can do, it does inside `run_on_main_process`
while the others wait; what fails there fails in all of them, and is told once. Waiting goes over a group of its own,
on the CPU and almost without a limit in time: tokenising a corpus may take longer than the time after which a
collective operation of the training counts as lost.

A single process never gets here: every function answers at once, and nothing of torch is imported for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from lifelong import errors
from lifelong.errors import LifelongError

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
WAITING_TIMEOUT = timedelta(days=7)
ENDED = "lifelong/ended"
LOST_PEER = 130
_TORN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "NCCL", "TCPStore")

_waiting: Any = None
_alone = 0


def launched() -> int:
    """Processes that the launcher has started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def launched_rank() -> int:
    """Number of this process among them, from 0."""
    return int(os.environ["RANK"]) if launched() > 1 else 0


def connect() -> None:
    """Meet the other processes of the run; once, and nothing where there is only this one."""
    global _waiting  # noqa: PLW0603 - the processes of a run are connected once
    if launched() == 1 or _waiting is not None:
        return
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "gloo"
        if torch.accelerator.is_available():
            kind = torch.accelerator.current_accelerator().type  # type: ignore[union-attr]
            local_rank = int(os.environ.get("LOCAL_RANK", "0"))
            torch.accelerator.set_device_index(local_rank % torch.accelerator.device_count())
            backend = f"{kind}:{dist.get_default_backend_for_device(kind)},cpu:gloo"
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    _waiting = dist.new_group(backend="gloo", timeout=WAITING_TIMEOUT)


def disconnect() -> None:
    """Part from the others at the end of a run."""
    global _waiting  # noqa: PLW0603 - see `connect`
    if _waiting is not None:
        import torch.distributed as dist

        _waiting = None
        dist.destroy_process_group()


def world_size() -> int:
    """Processes that take part in what is done now.

    1 without a launcher, before `connect` and inside `run_on_main_process`.
    """
    if _waiting is None or _alone:
        return 1
    import torch.distributed as dist

    return dist.get_world_size()


def rank() -> int:
    """Number of this process among those that take part."""
    if _waiting is None or _alone:
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def is_main_process() -> bool:
    """Whether this is the main process, which alone writes."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier(group=_waiting)


def run_on_main_process(work: Callable[[], T]) -> T:
    """Run `work` on the main process only; the others wait, and all return its result.

    Inside, there is only one process: collective operations are none there. Every process has to come here.

    Raises:
        LifelongError: in every process, whatever the work raised in the first.
    """
    if world_size() == 1:
        return work()
    import torch.distributed as dist

    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            with _being_alone():
                outcome[0] = work()
        except BaseException as error:
            outcome = [None, (type(error).__name__, str(error))]
            dist.broadcast_object_list(outcome, src=0, group=_waiting)
            raise
    dist.broadcast_object_list(outcome, src=0, group=_waiting)
    if outcome[1] is not None:
        raise _same_error(*outcome[1])
    value: T = outcome[0]
    return value


@contextlib.contextmanager
def _being_alone() -> Iterator[None]:
    global _alone  # noqa: PLW0603 - a depth
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def _same_error(name: str, message: str) -> BaseException:
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, LifelongError | errors.Interrupted)):
        return RuntimeError(f"the first process of the run failed: {name}: {message}")
    return errors.InputError(message) if kind is errors.UnknownNameError else kind(message)


def summed(values: Any) -> Any:
    """Element-wise sums over all processes of a float64 array or of a list of numbers, as a new array."""
    import numpy as np

    totals = np.array(values, dtype=np.float64)
    if world_size() > 1:
        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.from_numpy(totals), group=_waiting)
    return totals


def highest(value: int) -> int:
    """The highest of the values that the processes have."""
    if world_size() == 1:
        return value
    import torch
    import torch.distributed as dist

    found = torch.tensor([value])
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_waiting)
    return int(found)


def turns(count: int) -> list[tuple[int, bool]]:
    """Which of `count` pieces of work this process does, and whether it counts.

    All processes get equally many, so that a model whose parameters lie in parts on all of them can do the work: where
    the pieces do not divide, the last ones are done once more for nothing.
    """
    if not count:
        return []
    processes, own = world_size(), rank()
    rounds = -(-count // processes)
    places = [number * processes + own for number in range(rounds)]
    return [(min(place, count - 1), place < count) for place in places]


def agree_on_exit_code(exit_code: int) -> tuple[bool, int]:
    """Say that the run ends. The first process to say so gives the reason; the others hear its exit code.

    Returns:
        Whether this process is to tell the reason, and the exit code of the run.
    """
    if _waiting is None:
        return launched_rank() == 0, exit_code
    from torch.distributed.distributed_c10d import _get_default_store

    try:
        heard = _get_default_store().compare_set(ENDED, "", str(exit_code)).decode()
    except Exception:  # the store went with its process: nobody is left who could have said it
        return True, exit_code
    return heard == f"{exit_code}" and _first_to_say(), int(heard)


def _first_to_say() -> bool:
    from torch.distributed.distributed_c10d import _get_default_store

    return bool(_get_default_store().add(f"{ENDED}/told", 1) == 1)


def lost_peer(error: BaseException) -> bool:
    """Whether an error says no more than that another process of the run is gone."""
    return _waiting is not None and any(text in str(error) for text in _TORN)
