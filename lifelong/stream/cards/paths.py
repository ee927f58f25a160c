"""Files that the patterns of a card name, and a digest of their content.

A card may read what is below its own folder, after symbolic links are resolved, and what it names in full: an absolute
path or one that begins with a variable. It may not climb out with `..` or over a link: a card that was downloaded from
somewhere must show at first sight what it reads, and what it names in full is asked about (`require_own`).
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from lifelong.allowed import not_allowed
from lifelong.errors import InputError, did_you_mean
from lifelong.schema import Section
from lifelong.stream.cards.remote import is_remote, remote_files, remote_identity

Patterns = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]
_NO_DISK = (("/", "dev"), ("/", "proc"), ("/", "sys"))
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class CardFile(Section):
    """A named card. `path` is the file it was read from, whose folder relative paths start from."""

    name: str
    path: Path | None = Field(None, exclude=True)

    @property
    def folder(self) -> Path:
        """Folder that relative paths of the card start from."""
        return self.path.parent if self.path else Path()


def outside_names(card: CardFile, patterns: Mapping[str, Iterable[str] | None]) -> Iterator[str]:
    """Patterns that reach out of the card's folder, each behind its key: by a URL, a full path, `~`, or a variable.

    `$LIFELONG_...` do not count: the user has set them for exactly this, while `$HOME` is set everywhere.
    """
    for key, named in patterns.items():
        yield from (f"source.{key}: {pattern}" for pattern in named or () if _leads_out(pattern, card.folder.resolve()))


def _leads_out(pattern: str, folder: Path) -> bool:
    if is_remote(pattern):
        return True
    variables = [match[1] or match[2] for match in _VARIABLE.finditer(pattern)]
    if variables and all(name.startswith("LIFELONG_") or not os.environ.get(name) for name in variables):
        return False  # one that is not set is refused when the card is read
    if ".." in Path(pattern).parts:
        return False  # as is this
    path = Path(_VARIABLE.sub(lambda match: os.environ.get(match[1] or match[2], ""), pattern))
    return str(path).startswith(("/", "~")) and not path.is_relative_to(folder)


def require_own(kind: str, card: Path, names: Iterable[str], folders: Iterable[Path]) -> None:
    """Refuse a card from elsewhere that names files outside of its folder, unless they have been allowed here.

    Cards in the searched folders are one's own: who put them there has read them.

    Args:
        kind: `domain` or `task`.
        card: as it was given.
        names: what it names outside, each with its key.
        folders: those that are searched for cards.

    Raises:
        InputError: lists the names.
    """
    place = card.parent.resolve()
    if any(place == folder.resolve() for folder in folders):
        return
    if unknown := not_allowed(f"{kind} card: {name}" for name in names):
        raise InputError(
            f"{kind} card {card}: it is in none of the folders of your cards, and names files outside of its own:\n  "
            + "\n  ".join(name.partition(": ")[2] for name in unknown)
            + "\n  Nothing of it was read. If you trust these names: "
            + f"lifelong domain check {card} --allow-paths (they are remembered), or " * (kind == "domain")
            + f"put the card into ./{kind}s"
        )


def expand_patterns(card: CardFile, patterns: Iterable[str], where: str) -> list[Path]:
    """Files that match, without repetition, in alphabetical order within each pattern.

    Raises:
        InputError: a variable is not set, a pattern leaves the card's folder, nothing matches, or something that is
            no regular file.
    """
    place = f"{card.path or card.name}: {where}"
    found: dict[Path, None] = {}
    for pattern in patterns:
        if is_remote(pattern):
            found.update(dict.fromkeys(remote_files(pattern, place)))
            continue
        expanded = expand_variables(pattern, place)
        if ".." in Path(expanded).parts:
            raise InputError(
                f"{place}: {pattern!r} must not contain '..'; write the full path, "
                "or begin it with a variable such as $LIFELONG_DATA"
            )
        full = str(Path(glob.escape(str(card.folder))) / expanded)
        # Path.glob takes no absolute pattern
        names = sorted(glob.glob(full, recursive=True))  # noqa: PTH207
        matches = [path for path in map(Path, names) if not path.is_dir()]
        if not matches and names:
            inside = f"{pattern.rstrip('/')}/*.jsonl.gz"
            raise InputError(f"{place}: {pattern!r} is a folder; name its files, for example {inside}")
        if not matches:
            raise InputError(f"{place}: {pattern!r} matches no file{_nearest_file(Path(full))}")
        root = None if Path(expanded).is_absolute() else card.folder.resolve()
        for path in matches:
            require_readable(path, root, f"{place}: {pattern!r}")
        found.update(dict.fromkeys(matches))
    return list(found)


def require_inside(path: Path, root: Path, place: str) -> None:
    """Refuse what a link leads to out of a folder.

    Raises:
        InputError: names the file.
    """
    if not path.resolve().is_relative_to(root):
        raise InputError(f"{place}: {path.name} is a link out of the folder of the card; name the full path")


def require_readable(path: Path, root: Path | None, place: str) -> None:
    """Refuse what is no regular file of a disk, and what a link leads to out of `root`, where one is given.

    Raises:
        InputError: names the file.
    """
    resolved = path.resolve()
    if root is not None:
        require_inside(path, root, place)
    if resolved.exists() and (not resolved.is_file() or resolved.parts[:2] in _NO_DISK):
        raise InputError(f"{place}: {path} is not a regular file (a device, a pipe or the like)")


def expand_variables(pattern: str, place: str) -> str:
    """`$NAME`, `${NAME}` and a leading `~` expanded; a variable that is not set is an InputError."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise InputError(
                f"{place}: {pattern!r} needs the variable {name}, which is not set; "
                f"set it to the folder meant, for instance: export {name}=/path/to/folder"
            )
        return os.environ[name]

    return str(Path(_VARIABLE.sub(value, pattern)).expanduser())


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}" if not glob.has_magic(str(folder)) else ""
    names = sorted(item.name for item in folder.iterdir() if item.is_file())
    return f" in {folder}" + did_you_mean(path.name, names, limit=8)


def file_digest(path: Any, memo_dir: Path | None = None) -> str:
    """BLAKE2b of the content. With `memo_dir`, a file of the same path, size and time is not read again.

    The content alone counts: the same corpus in another place has the same fingerprint. Of a file on a network it is
    what its server says of the content, by which it is not read.
    """
    if not isinstance(path, Path):
        return hashlib.blake2b(json.dumps(remote_identity(path)).encode(), digest_size=32).hexdigest()
    status = path.stat()
    name = str(path.resolve())
    state = [name, status.st_size, status.st_mtime_ns]
    memo = None
    if memo_dir is not None:
        memo = memo_dir / (hashlib.blake2b(name.encode(), digest_size=16).hexdigest() + ".json")
        try:
            known = json.loads(memo.read_text(encoding="utf-8"))
            if known["state"] == state:
                return str(known["digest"])
        except (OSError, ValueError, KeyError):
            pass
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if memo is not None:
        memo.parent.mkdir(parents=True, exist_ok=True)
        temporary = memo.with_name(f".{memo.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"state": state, "digest": digest.hexdigest()}), encoding="utf-8")
        temporary.replace(memo)
    return digest.hexdigest()
