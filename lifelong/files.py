"""Files that survive: atomic writes, hashes, and the model folder of a stage.

Only safetensors, JSON, YAML and Arrow are written here; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lifelong.errors import CorruptionError

CHUNK_BYTES = 1 << 20
# names under which files and folders are filled before they get their own: what a kill leaves behind
PARTIAL = re.compile(r"\..+\.(tmp|part|partial|[0-9a-f]{8})$")


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: temporary name, fsync, rename."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def finite(value: Any) -> Any:
    """JSON knows neither infinity nor nan: both become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def write_json(path: Path, data: Any) -> None:
    """Write JSON as `write_text` does; numbers keep all their digits, so that what is read back is bitwise the same."""
    write_text(path, json_text(data))


def json_text(data: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def read_json(path: Path) -> Any:
    """The content of a JSON file of ours.

    Raises:
        CorruptionError: missing, unreadable, or no JSON.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise CorruptionError(f"{path}: the file is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptionError(f"{path}: cannot be read as JSON ({error})") from None


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file with the hash of its own content: for files beside the ledger, which it does not list."""
    write_text(path, _sealed(data))


def read_sealed(path: Path) -> dict[str, Any]:
    """Inverse of `write_sealed`.

    Raises:
        CorruptionError: missing, or any byte of it was changed.
    """
    data = read_json(path)
    if isinstance(data, dict):
        data.pop("sha256", None)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.read_text(encoding="utf-8") == _sealed(data):
                return data
    raise CorruptionError(f"{path}: its content differs from what was written")


def json_fingerprint(data: Any) -> str:
    """SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _sealed(data: Mapping[str, Any]) -> str:
    return json.dumps({"sha256": json_fingerprint(data), **data}, ensure_ascii=False, indent=1) + "\n"


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make every file below `folder` durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)


def usual_modes(folder: Path) -> None:
    """Give every file below `folder` the mode that a new file has; safetensors writes its own for the owner alone."""
    with tempfile.TemporaryDirectory(dir=folder) as here:
        (probe := Path(here) / "probe").touch()
        mode = stat.S_IMODE(probe.stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def is_file_name(name: Any) -> bool:
    """Whether a name that was read from a file is that of an entry of one folder, and reaches no other."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set("/\\\0") & set(name)


def named_entry(folder: Path, name: Any) -> Path:
    """The entry of a folder that a manifest names.

    Raises:
        CorruptionError: the name reaches out of the folder; a manifest may have been written by anybody.
    """
    if not is_file_name(name):
        raise CorruptionError(f"{folder}: its list of files names {name!r}, which is not a file of this folder")
    return folder / str(name)


def outsiders(path: Path, depth: int | None = None) -> Iterator[Path]:
    """Symbolic links, devices, pipes and sockets at or below `path`, which need not exist; follows none of them.

    Args:
        path: file or folder.
        depth: levels of folders below `path` that are looked at; all where not given.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        yield path
    elif stat.S_ISDIR(mode) and depth != 0:
        # what may not be listed is reported by those who want to read it
        with contextlib.suppress(PermissionError), os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    yield from outsiders(Path(entry.path), None if depth is None else depth - 1)
                elif not entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def tree_hashes(folders: Iterable[Path], root: Path) -> dict[str, str]:
    """SHA-256 of every file below `folders`, by its path relative to `root`."""
    return {
        path.relative_to(root).as_posix(): file_hash(path)
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def atomic_directory(folder: Path) -> Iterator[Path]:
    """A folder that appears complete or not at all: fill the yielded one, it is made durable and renamed."""
    partial = folder.with_name(f".{folder.name}.partial")
    remove_tree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        usual_modes(partial)
        sync_tree(partial)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk what was half written is in the way
        raise
    partial.rename(folder)
    sync_folder(folder.parent)


@contextlib.contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """Files that replace those of the same names in `folder` together, once all are written; a full disk leaves these.

    Yields the folder to write them to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".new.partial"
    remove_tree(partial)
    partial.mkdir()
    try:
        yield partial
        for path in sorted(partial.iterdir()):
            path.replace(folder / path.name)
        sync_folder(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partials(folder: Path) -> None:
    """Remove everything below `folder` that was still being written when its process died."""
    for parent, folders, files in os.walk(folder):
        for name in [name for name in folders if PARTIAL.match(name)]:
            folders.remove(name)
            remove_tree(Path(parent) / name)
        for name in files:
            if PARTIAL.match(name):
                (Path(parent) / name).unlink()


def free_name(path: Path) -> Path:
    """`path` with the first number behind it that is not taken; asks no clock, which may go backwards."""
    number = 1
    while (found := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return found


def remove_tree(folder: Path) -> None:
    """Remove a folder if it is there; of a symbolic link the link alone."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)
