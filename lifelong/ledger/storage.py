"""What a disk can do to a run: full, read-only, not permitted, failing; told in one message that says what to do.

Files are written by five libraries. Python and Arrow raise an OSError with its number; of the others see
`storage_reason`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lifelong.errors import StorageError

REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("your quota on this disk is used up", "free some space"),
    errno.EFBIG: ("no file may be as large as this one", "raise the limit (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", "mount it for writing or copy the folder elsewhere"),
    errno.EACCES: ("you may not write there", "change its permissions or copy the folder elsewhere"),
    errno.EPERM: ("you may not write there", "change its permissions or copy the folder elsewhere"),
    errno.EIO: ("the disk failed to read or write", "check the disk, then restore what it lost"),
    errno.ESTALE: ("the network file system lost the file", "mount it again"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
}
UNREADABLE = ("it may not be read", "ask its owner for the right to read it and the folders above it")
FULL = (errno.ENOSPC, errno.EDQUOT)
# safetensors (0.6 to 0.8) and tokenizers (0.22, 0.23) hand the number on in no other way than in this form, which
# Rust's standard library gives every error of the system; and safetensors removes what it wrote before it raises, so
# that the disk, asked afterwards, has room again
_RUST_NUMBER = re.compile(r"\(os error (\d+)\)")
PROBE_BYTES = 1 << 14


def storage_reason(error: BaseException, folder: Path | None) -> int | None:
    """The error number that says what the disk did, or None where `error` is about something else.

    An error raised while another was being handled counts by the first that speaks of the disk. torch's writer raises
    a RuntimeError that says nothing: then the disk that holds `folder` is asked.
    """
    chain = list(_chain(error))
    for seen in chain:
        if (number := _number(seen)) in REASONS:
            return number
    return _refusal(folder) if folder is not None and any(type(seen) is RuntimeError for seen in chain) else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = _RUST_NUMBER.search(str(error))
    return None if found is None else int(found[1])


def _refusal(folder: Path) -> int | None:
    """What the disk answers now to a new file in `folder`; None where it takes it.

    The file is one byte longer than the longest there, because a writer that met a limit leaves its own cut at it.
    """
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)) as probe:
            probe.truncate(1 + max(sizes, default=0))  # sparse: takes no room
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as refused:
        return refused.errno if refused.errno in REASONS else None
    return None


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def free_bytes(folder: Path) -> int:
    """What is free on the disk that holds `folder`, or would hold it."""
    return shutil.disk_usage(_existing(folder)).free


def storage_message(error: BaseException, folder: Path | None) -> str | None:
    """What the disk did, where, and what to do; None where `error` is about something else.

    Args:
        error: as a library raised it.
        folder: that was read or written; None where it is not known.
    """
    number = storage_reason(error, folder)
    if number is None:
        return None
    name = getattr(error, "filename", None)
    is_refused = number in (errno.EACCES, errno.EPERM)
    what, cure = UNREADABLE if is_refused and name is not None and _is_unreadable(name) else REASONS[number]
    where = f" ({name})" if name else ""
    written = Path(os.fsdecode(name)) if name else folder
    free = f"; {free_bytes(written):,} bytes are free" if number in FULL and written is not None else ""
    return f"{what}{where}{free}. {cure[0].upper()}{cure[1:]}"


def _is_unreadable(name: str | bytes) -> bool:
    """Whether it could not even have been read: then it was not writing that failed."""
    try:
        os.lstat(name)
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(name, os.R_OK)


@contextlib.contextmanager
def storage_faults(folder: Path, doing: str, then: str) -> Iterator[None]:
    """Turn whatever the disk does to `folder` into one StorageError.

    Args:
        folder: what is written.
        doing: subject of the message, for example "run folder 'runs/x'".
        then: what to do once the disk is well again.

    Raises:
        StorageError: the disk is full, read-only or failing.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if (message := storage_message(error, folder)) is None:
            raise
        raise StorageError(f"{doing}: {message}, {then}") from error
