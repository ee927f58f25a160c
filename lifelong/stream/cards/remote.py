"""Files that are read over a network: `s3://`, `gs://`, `hf://`, `https://` and other file systems of fsspec.

What is asked for is a range of bytes, so that no more travels than is read, and a connection that is lost is made
again where it broke.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lifelong.errors import InputError

if TYPE_CHECKING:
    from upath import UPath

T = TypeVar("T")
# protocol, and what is to be installed for it; those of this machine's own files are written as paths
PROTOCOLS = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
    "hf": "huggingface_hub",
    "https": "aiohttp",
    "http": "aiohttp",
}
ATTEMPTS = 6
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; twice as many before each further one."""
REQUEST_BYTES = 1 << 20
# what a file system knows of the content of a file, by whatever name
_OF_CONTENT = ("ETag", "etag", "blob_id", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "mtime")


def is_remote(pattern: str) -> bool:
    """Whether a pattern names files of a network."""
    return "://" in pattern


def remote_files(pattern: str, place: str) -> list[Any]:
    """Files that match, in alphabetical order.

    Raises:
        InputError: the protocol is unknown or its package is missing, nothing matches, or nobody answers.
    """
    from glob import has_magic

    from upath import UPath

    protocol = pattern.partition("://")[0]
    if protocol not in PROTOCOLS:
        raise InputError(f"{place}: {pattern!r}: {protocol}:// is not one of {', '.join(f'{p}://' for p in PROTOCOLS)}")
    with _explained(pattern, place):
        found = UPath(pattern)
        if not has_magic(pattern):
            _patiently(found, lambda: found.fs.info(found.path))
            return [found]
        names = _patiently(found, lambda: found.fs.glob(found.path))
        matches = [UPath(found.fs.unstrip_protocol(name), **found.storage_options) for name in sorted(names)]
    if not matches:
        raise InputError(f"{place}: {pattern!r} matches no file")
    return matches


def remote_size(path: UPath) -> int:
    """Bytes of a file.

    Raises:
        InputError: the server does not say.
    """
    size = _facts(path).get("size")
    if size is None:
        raise InputError(f"{path}: the server does not say how long this file is, so that parts of it cannot be read")
    return int(size)


def remote_identity(path: UPath) -> list[Any]:
    """Values that change when the content does, as far as the file system tells."""
    facts = _facts(path)
    return [str(path), remote_size(path), *(str(facts[name]) for name in _OF_CONTENT if name in facts)]


def open_remote(path: UPath) -> io.BufferedReader:
    """The bytes of a file, asked for in ranges."""
    return io.BufferedReader(_Ranges(path), REQUEST_BYTES)


class _Ranges(io.RawIOBase):
    def __init__(self, path: UPath) -> None:
        self.source, self.position, self.length = path, 0, remote_size(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        end = min(self.length, self.position + len(buffer))
        if end <= self.position:
            return 0
        source, begin = self.source, self.position
        with _explained(str(source), str(source)):
            read: bytes = _patiently(source, lambda: _whole(source.fs.cat_file(source.path, begin, end), end - begin))
        buffer[: len(read)] = read
        self.position += len(read)
        return len(read)


def _whole(read: bytes, wanted: int) -> bytes:
    if len(read) != wanted:
        raise ConnectionError(f"{len(read):,} of {wanted:,} bytes came")
    return read


@cache
def _facts(path: UPath) -> dict[str, Any]:
    with _explained(str(path), str(path)):
        found: dict[str, Any] = _patiently(path, lambda: path.fs.info(path.path))
    return found


def _patiently(path: Any, ask: Callable[[], T]) -> T:
    """Ask until there is an answer, `ATTEMPTS` times at most; what will not become better is not asked again."""
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except (FileNotFoundError, PermissionError, NotImplementedError, ImportError):
            raise
        except Exception:  # every file system raises its own
            if attempt + 1 == ATTEMPTS:
                raise
            time.sleep(FIRST_PAUSE * 2**attempt)
    raise AssertionError(path)


@contextmanager
def _explained(pattern: str, place: str) -> Iterator[None]:
    protocol = pattern.partition("://")[0]
    try:
        yield
    except InputError:
        raise
    except ImportError:
        package = PROTOCOLS.get(protocol, protocol)
        raise InputError(f"{place}: {protocol}:// needs a package that is missing: pip install {package}") from None
    except FileNotFoundError:
        raise InputError(f"{place}: {pattern!r} is not there") from None
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        login = " (log in with `hf auth login`, or set HF_TOKEN)" if protocol == "hf" else ""
        raise InputError(f"{place}: {pattern!r} cannot be read: {said}{login}") from None


def size_of(path: Any) -> int:
    """Bytes of a file, here or elsewhere."""
    return int(path.stat().st_size) if isinstance(path, Path) else remote_size(path)
