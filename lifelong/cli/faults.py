"""What a disk, the memory or a file of somebody else does to a command, told in one message instead of a traceback.

Only what cannot be a fault of this package alone: everything else stays a traceback, and exit code 1.
"""

from __future__ import annotations

import errno
import pickle
import sys
from pathlib import Path

from lifelong.schema import shortened

MEMORY = (
    "can't allocate memory", "can't start new thread", "out of memory", "Cannot allocate memory",
    "failed to map segment from shared object",
)  # fmt: skip
RESUMES = "what is committed is whole, and the same command goes on from there"

SMALLER = (
    "A run may go on in smaller pieces without losing a step: halve train.per_device_train_batch_size and double "
    "train.gradient_accumulation_steps, or set train.gradient_checkpointing=true"
)


def fault_message(error: Exception) -> str | None:
    """What happened and what to do; None for an error that nothing but a bug explains."""
    if _is_out_of_memory(error):
        return f"there is not enough memory ({_line(error)}); {RESUMES} with more of it. {SMALLER}"
    from lifelong.ledger.storage import storage_message

    if isinstance(error, OSError) or _is_of_safetensors(error):
        name = getattr(error, "filename", None)
        return storage_message(error, Path(name) if isinstance(name, str) else None) or _refused(error)
    if isinstance(error, RuntimeError):  # of a writer that is no part of Python
        return storage_message(error, None)
    if isinstance(error, UnicodeError):
        return f"text that cannot be read or written as {getattr(error, 'encoding', 'Unicode')}: {_line(error)}"
    if isinstance(error, pickle.UnpicklingError):
        return f"a file was not loaded, because it holds more than plain tensors: {_line(error)}"
    return None


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and any(text in str(error) for text in MEMORY)
    )


def _is_of_safetensors(error: Exception) -> bool:
    library = sys.modules.get("safetensors")
    return library is not None and isinstance(error, library.SafetensorError)


def _refused(error: Exception) -> str:
    """What the system or a reader of files says, about which file."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{shortened(error.filename, 200)}: {error.strerror}"
    return _line(error)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
