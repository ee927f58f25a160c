"""Plugin registry by folder: every module of a plugin package is one plugin, named by its file.

`metrics/bwt.py` is the metric `bwt`, `methods/ewc.py` the method `ewc`, `expand/families/llama.py` the
family `llama`. Adding one is adding one file. Other distributions add theirs by entry points that name a module of the
same form. Names are listed without importing any plugin.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache, wraps
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, TypeVar

from lifelong.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUPS = {
    "lifelong.methods": ("lifelong.methods", ("Plugin",)),
    "lifelong.metrics": (
        "lifelong.metrics",
        ("TITLE", "DESCRIPTION", "UNIT", "LOWER_IS_BETTER", "compute or compute_history"),
    ),
    "lifelong.expand.families": ("lifelong.families", ("FAMILY",)),
}
"""Package of plugins -> the group of entry points that joins it, and what a module from there must define."""


T = TypeVar("T")
R = TypeVar("R")


def remembered(call: Callable[[T], R]) -> Callable[[T], R]:
    """Keep the result for the object that was given last, by identity: a run of thousands of stages is slow to hash."""
    last: list[tuple[T, R]] = []

    @wraps(call)
    def known(item: T) -> R:
        if not last or last[0][0] is not item:
            last[:] = [(item, call(item))]
        return last[0][1]

    return known


def plugin_names(package: str) -> list[str]:
    """Names of the plugins in `package` (dotted), in alphabetical order; imports only the package itself.

    A module whose name begins with an underscore is not a plugin. Files use `_` where a name has `-`.

    Raises:
        InputError: two plugins have the same name.
    """
    return sorted([*_own_names(package), *entry_points_of(package)])


def load_plugin(package: str, name: str, *, kind: str, where: str = "") -> ModuleType:
    """The module that holds plugin `name`; `-` and `_` are the same in names.

    Raises:
        UnknownNameError: no such plugin; offers the nearest name.
        InputError: a plugin of another distribution cannot be imported, or is none.
    """
    canonical = str(name).replace("_", "-")
    known = plugin_names(package)
    if canonical not in known:
        raise UnknownNameError(kind, name, known, where)
    if entry := entry_points_of(package).get(canonical):
        return _load_entry(entry, kind, GROUPS[package][1])
    return importlib.import_module(f"{package}.{canonical.replace('-', '_')}")


@cache
def entry_points_of(package: str) -> Mapping[str, EntryPoint]:
    """Plugins that other installed distributions add to `package`, by name; the distributions are read once.

    Raises:
        InputError: two plugins have the same name.
    """
    if package not in GROUPS:
        return {}
    from importlib.metadata import entry_points

    origins = dict.fromkeys(_own_names(package), "lifelong itself")
    entries: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUPS[package][0]):
        name, origin = entry.name.replace("_", "-"), _origin(entry)
        if name in origins:
            raise InputError(
                f"entry points {entry.group}: {name!r} is defined by {origins[name]} and by {origin}; uninstall or "
                "rename one of them"
            )
        origins[name], entries[name] = origin, entry
    return entries


def _own_names(package: str) -> list[str]:
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return [module.name.replace("_", "-") for module in modules if not module.name.startswith("_")]


def _origin(entry: EntryPoint) -> str:
    distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"
    return f"{distribution} ({entry.value})"


def _load_entry(entry: EntryPoint, kind: str, needed: tuple[str, ...]) -> ModuleType:
    try:
        module: ModuleType = entry.load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{kind} {entry.name!r} of {_origin(entry)} cannot be imported: {reason}") from error
    if missing := [names for names in needed if not any(hasattr(module, name) for name in names.split(" or "))]:
        raise InputError(
            f"{kind} {entry.name!r} of {_origin(entry)} is not a {kind}: it does not define {', '.join(missing)}"
        )
    return module


def shipped_folder(kind: Literal["domains", "recipes", "tasks"]) -> Path:
    """The folder of the cards, recipes or tasks that travel with the package.

    In an installed package they are package data (`lifelong/_shipped/<kind>`); in an editable checkout they
    stand at the top of the repository, next to the package.
    """
    package = Path(__file__).resolve().parent
    installed = package / "_shipped" / kind
    return installed if installed.is_dir() else package.parent / kind
