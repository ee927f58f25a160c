"""Recipe files: where they lie, and what one takes over from another by `base:`.

A recipe that names a `base` is that recipe with changes: mappings are merged key by key, `null` takes a key out, and
everything else is replaced. Entries of a list are changed one by one by a mapping with their numbers:

    base: sequential
    methods: [{name: ewc}]
    stages: {1: {expand: {layers: 3}}}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong.errors import InputError, UnknownNameError

Read = Callable[[Path], dict[str, Any]]
ALWAYS_OWN = ("name", "description", "expect")


def recipe_names(folders: Sequence[Path]) -> list[str]:
    """Names of the recipes below some folders; one in a folder of its own has its name in front: `tiny/ewc`."""
    found = {
        path.relative_to(folder).with_suffix("").as_posix() for folder in folders for path in folder.rglob("*.yaml")
    }
    return sorted(found)


def recipe_file(recipe: str, folders: Sequence[Path]) -> Path:
    """The file of a recipe name or path.

    Raises:
        InputError: there is none; offers the nearest name, or the sizes it comes in.
    """
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe)
        if not path.is_file():
            raise InputError(f"recipe {recipe!r}: there is no such file")
        return path
    for folder in folders:
        if (path := folder / f"{recipe}.yaml").is_file():
            return path
    names = recipe_names(folders)
    if sizes := [name for name in names if name.endswith(f"/{recipe}")]:
        raise InputError(f"recipe {recipe!r}: comes in several sizes: {', '.join(sizes)}")
    raise UnknownNameError("recipe", recipe, names)


def read_with_base(path: Path, read: Read, folders: Sequence[Path], above: Sequence[Path] = ()) -> dict[str, Any]:
    """A recipe file with what it takes over from its base.

    Args:
        path: the file.
        read: one file.
        folders: where bases are looked for, after the file's own folder.
        above: files that are being read.

    Raises:
        InputError: a base that does not exist, or that leads back to the file itself.
    """
    data = read(path)
    if path in above:
        chain = " -> ".join(str(file) for file in [*above, path])
        raise InputError(f"{path}: `base` leads back to itself: {chain}")
    if "base" not in data:
        return data
    base = data.pop("base")
    if not isinstance(base, str):
        raise InputError(f"{path}: base: is the name or path of a recipe, not {base!r}")
    taken = read_with_base(recipe_file(base, [path.parent, *folders]), read, folders, [*above, path])
    for key in ALWAYS_OWN:
        taken.pop(key, None)
    merged: dict[str, Any] = merge(taken, data, str(path))
    return {"name": own_name(path), **merged}


def own_name(path: Path) -> str:
    """`tiny-ewc` for tiny/ewc.yaml, `ewc` for recipes/ewc.yaml."""
    folder = path.resolve().parent.name
    return path.stem if folder == "recipes" else f"{folder}-{path.stem}"


def merge(base: Any, change: Any, where: str) -> Any:
    """`base` with the changes; see the head of this file.

    Raises:
        InputError: a mapping for a list has a key that is no number of an entry.
    """
    if isinstance(base, Mapping) and isinstance(change, Mapping):
        merged = dict(base)
        for key, value in change.items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = merge(merged.get(key), value, f"{where}: {key}")
        return merged
    if isinstance(base, list) and isinstance(change, Mapping):
        entries = list(base)
        for key, value in change.items():
            if not isinstance(key, int) or not 0 <= key < len(entries):
                raise InputError(f"{where}: {key!r} is no entry of the base's list; they are 0 to {len(entries) - 1}")
            entries[key] = merge(entries[key], value, f"{where}[{key}]")
        return entries
    return change
