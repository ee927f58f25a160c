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


@contextmanager
def true_float64() -> Iterator[None]:
    """While open, `torch.float32` means float64 and `Tensor.float()` keeps double precision, in this process."""
    with _LOCK:
        float32, to_float = torch.float32, Tensor.float
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        torch.float32 = torch.float = torch.float64
        Tensor.float = Tensor.double  # type: ignore[method-assign]
        try:
            yield
        finally:
            torch.float32 = torch.float = float32
            Tensor.float = to_float  # type: ignore[method-assign]
            torch.set_default_dtype(default)
