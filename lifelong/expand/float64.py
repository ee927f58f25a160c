"""A forward pass that is float64 throughout.

The libraries cast norms, softmax, routers and rotary tables to float32 even in a double-precision model, which hides
anything below 1e-6.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_LOCK = threading.RLock()
_FLOAT32, _TO_FLOAT = torch.float32, Tensor.float


@contextmanager
def true_float64() -> Iterator[None]:
    """While open, `torch.float32` means float64 and `Tensor.float()` keeps double precision, in this process."""
    with _LOCK, _meaning(torch.float64, Tensor.double, torch.float64):
        yield


@contextmanager
def usual_float32() -> Iterator[None]:
    """Lifts `true_float64` where files are read: they say float32 and mean it."""
    with _LOCK, _meaning(_FLOAT32, _TO_FLOAT, _FLOAT32):
        yield


@contextmanager
def _meaning(float32: torch.dtype, to_float: object, default: torch.dtype) -> Iterator[None]:
    """What `torch.float32`, `Tensor.float` and the default dtype mean inside."""
    before = torch.float32, Tensor.float, torch.get_default_dtype()
    torch.float32 = torch.float = float32
    Tensor.float = to_float  # type: ignore[method-assign, assignment]
    torch.set_default_dtype(default)
    try:
        yield
    finally:
        torch.float32 = torch.float = before[0]
        Tensor.float = before[1]  # type: ignore[method-assign]
        torch.set_default_dtype(before[2])
