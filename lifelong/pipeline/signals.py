"""Ctrl-C and SIGTERM as a request to stop."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

from lifelong import distributed
from lifelong.errors import Interrupted
from lifelong.train.phase import StopRequest

SAME_SIGNAL_SECONDS = 5.0


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Ctrl-C and SIGTERM: training saves first, every other phase stops at once; a second signal always stops."""
    stop = StopRequest()
    asked_at = 0.0

    def handle(number: int, _frame: object) -> None:
        nonlocal asked_at
        first, stop.requested = not stop.requested, True
        asked_at = time.monotonic() if first else asked_at
        # a launcher hands on to its processes what the terminal or the queue has sent to them already
        again = distributed.launched() > 1 and time.monotonic() - asked_at < SAME_SIGNAL_SECONDS
        if stop.deferred and (first or again):
            return
        raise Interrupted(f"stopped by {signal.Signals(number).name}; run the same command to continue")

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
