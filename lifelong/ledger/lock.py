"""One writer at a time: a lock that the kernel takes back when its owner dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from lifelong.errors import InputError

_held: set[int] = set()


def _let_go_in_child() -> None:
    # a worker process that outlives a killed owner must not keep the lock
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock `path` while open.

    Raises:
        InputError: another process holds it, or the file system knows no locks.
        OSError: the file cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown"
            raise InputError(
                f"run folder {str(path.parent)!r} is in use by process {owner}; one writer at a time. "
                "Wait for it, or end it: the lock goes with its owner"
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise InputError(
                    f"run folder {str(path.parent)!r} is on a file system without locks ({error.strerror}); "
                    "choose --out on another one and copy the run there when it is finished"
                ) from None
            raise
        _held.add(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield
    finally:
        _held.discard(descriptor)
        with contextlib.suppress(OSError):
            os.close(descriptor)
