"""What a disk can do to a run: full, read-only, not permitted, failing; told in one message that says what to do.

Files are written by four libraries, and not all of them hand the error number on: where it is missing, the text of
the error and the free space of the disk tell.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
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
# how writers in other languages put it when no number comes through
TEXTS = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "File too large": errno.EFBIG,
    "Read-only file system": errno.EROFS,
    "Permission denied": errno.EACCES,
    "Input/output error": errno.EIO,
}
WRITER_TEXTS = ("failed writing", "unexpected pos", "I/O error", "Io error", "error writing")
FEW_BYTES = 1 << 20


def storage_reason(error: BaseException, folder: Path) -> int | None:
    """The error number that says what the disk did, or None where `error` is about something else.

    An error raised while another was being handled counts by the first that speaks of the disk.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in REASONS:
            return seen.errno
        text = str(seen)
        for phrase, number in TEXTS.items():
            if phrase in text:
                return number
        if any(phrase in text for phrase in WRITER_TEXTS):
            return errno.ENOSPC if free_bytes(folder) < FEW_BYTES else errno.EIO
        seen = seen.__cause__ or seen.__context__
    return None


def free_bytes(folder: Path) -> int:
    """What is free on the disk that holds `folder`, or would hold it."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def storage_message(error: BaseException, folder: Path) -> str | None:
    """What the disk did, where, and what to do; None where `error` is about something else."""
    number = storage_reason(error, folder)
    if number is None:
        return None
    what, cure = REASONS[number]
    name = getattr(error, "filename", None)
    where = f" ({name})" if name else ""
    return f"{what}{where}; {free_bytes(folder):,} bytes are free. {cure[0].upper()}{cure[1:]}"


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
