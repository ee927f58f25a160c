"""Recipe files: where they are, and what one inherits from another by `base:`.

A recipe that names a `base` is that recipe with changes: mappings are merged key by key, `null` takes a key out, and
everything else is replaced. Entries of a list are changed one by one by a mapping with their numbers:

    base: sequential
    methods: [{name: ewc}]
    stages: {1: {expand: {layers: 3}}}

A recipe that is the same in several sizes is in `any-size/` and lists its `sizes`: `tiny/ewc` is
`any-size/ewc.yaml`, with the bases of `tiny/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lifelong.errors import InputError, UnknownNameError
from lifelong.ledger.folder import RunFolder
from lifelong.plugins import shipped_folder
from lifelong.recipe.recipe import Recipe
from lifelong.schema import YAML_DEPTH, Origin, Yaml, parse_yaml, read_yaml, shortened, validation_lines

Read = Callable[[Path], dict[str, Any]]
ANY_SIZE = "any-size"
ALWAYS_OWN = ("name", "description", "expect")


def recipe_names(folders: Sequence[Path]) -> list[str]:
    """Names of the recipes below some folders; one in a folder of its own has its name in front: `tiny/ewc`."""
    found = {
        name
        for folder in folders
        for path in folder.rglob("*.yaml")
        for name in (
            [f"{size}/{path.stem}" for size in _sizes(path)]
            if path.parent.name == ANY_SIZE
            else [path.relative_to(folder).with_suffix("").as_posix()]
        )
    }
    return sorted(found)


def _sizes(path: Path) -> list[str]:
    """Sizes in which a recipe of `any-size/` comes."""
    return list(_read_file(path).get("sizes", ()))


def recipe_file(recipe: str, folders: Sequence[Path]) -> Path:
    """The file of a recipe name or path.

    Raises:
        InputError: there is none; offers the nearest name, or the sizes it comes in.
    """
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe)
        if not path.is_file():
            raise InputError(f"recipe {recipe!r}: no such file")
        return path
    for folder in folders:
        if (path := folder / f"{recipe}.yaml").is_file():
            return path
        size, slash, name = recipe.partition("/")
        if slash and (path := folder / ANY_SIZE / f"{name}.yaml").is_file() and size in _sizes(path):
            return path
    names = recipe_names(folders)
    if sizes := [name for name in names if name.endswith(f"/{recipe}")]:
        raise InputError(f"recipe {recipe!r}: comes in several sizes: {', '.join(sizes)}")
    raise UnknownNameError("recipe", recipe, names)


def read_with_base(
    path: Path, read: Read, folders: Sequence[Path], above: Sequence[Path] = (), home: Path | None = None
) -> dict[str, Any]:
    """A recipe file with what it takes over from its base.

    Args:
        path: the file.
        read: one file.
        folders: where bases are looked for, after the recipe's own folder.
        above: files that are being read.
        home: the recipe's own folder, where it is not the file's: its size.

    Raises:
        InputError: a base that does not exist, or that leads back to the file itself.
    """
    data, home = read(path), home or path.parent
    data.pop("sizes", None)
    if path in above:
        chain = " -> ".join(str(file) for file in [*above, path])
        raise InputError(f"{path}: `base` leads back to itself: {chain}")
    if "base" not in data:
        return data
    base = data.pop("base")
    if not isinstance(base, str):
        raise InputError(f"{path}: base: is the name or path of a recipe, not {base!r}")
    taken = read_with_base(recipe_file(base, [home, *folders]), read, folders, [*above, path])
    for key in ALWAYS_OWN:
        taken.pop(key, None)
    merged: dict[str, Any] = merge(taken, data, str(path))
    return {"name": own_name(home / path.name), **merged}


def own_name(path: Path) -> str:
    """`tiny-ewc` for tiny/ewc.yaml, `ewc` for recipes/ewc.yaml."""
    folder = path.resolve().parent.name
    return path.stem if folder == "recipes" else f"{folder}-{path.stem}"


def merge(base: Any, change: Any, where: str) -> Any:
    """`base` with the changes; see the head of this file.

    Raises:
        InputError: a mapping for a list has a key that is not an index of an entry.
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
                raise InputError(
                    f"{where}: {key!r} is not an index of the base's list; valid are 0 to {len(entries) - 1}"
                )
            entries[key] = merge(entries[key], value, f"{where}[{key}]")
        return entries
    return change


def read_recipe_file(out: Path) -> Recipe:
    """The recipe that a run folder belongs to."""
    path = RunFolder(out).recipe
    return parse_recipe(read_yaml(path).data, where=str(path))


SCHEMA_LINE = "# yaml-language-server: $schema=recipe.schema.json\n"


def resolved_yaml(recipe: str | Path, overrides: Sequence[str] = ()) -> str:
    """A recipe as YAML with its base files resolved and overrides applied; what it does not say stays unsaid."""
    data, path = _resolved(recipe, overrides)
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    comments = "".join(f"{line}\n" for line in head if "yaml-language-server" not in line)
    text = yaml.dump(data, Dumper=_Compact, sort_keys=False, allow_unicode=True, width=110)
    return SCHEMA_LINE + comments + text


class _Compact(yaml.SafeDumper):
    """Sections of plain values on one line, as recipes are written by hand."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> Any:
        inner = isinstance(mapping, dict) and mapping is not self.top
        return super().represent_mapping(tag, mapping, flow_style=inner or flow_style)

    def represent(self, data: Any) -> Any:
        self.top = data
        return super().represent(data)

    def ignore_aliases(self, _: Any) -> bool:
        return True


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name (./recipes, then the shipped ones) or path, with `a.b=value` overrides applied.

    Raises:
        InputError: no such recipe, no YAML, or any number of wrong keys and values, all in one message.
    """
    data, path = _resolved(recipe, overrides)
    set_keys = [override.partition("=")[0] for override in overrides]
    return parse_recipe(data, set_keys=set_keys, origin=Origin(str(path), read_yaml(path, Yaml).lines))


def _resolved(recipe: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], Path]:
    path, folders = find_recipe(str(recipe)), _recipe_folders()
    home = None
    if path.parent.name == ANY_SIZE:
        size = str(recipe).partition("/")[0]
        home = next(folder / size for folder in folders if (folder / size).is_dir())
    data = read_with_base(path, _read_file, folders, home=home)
    for override in overrides:
        apply_override(data, override)
    return data, path


def _read_file(path: Path) -> dict[str, Any]:
    data = read_yaml(path, Yaml).data
    if not isinstance(data, dict):
        raise InputError(f"{path}: a recipe is a mapping (name:, model:, stages: ...), this is a {type(data).__name__}")
    return data


def _recipe_folders() -> list[Path]:
    return [Path("recipes"), shipped_folder("recipes")]


def find_recipe(recipe: str) -> Path:
    """The file of a recipe name or path.

    Raises:
        InputError: there is none; offers the nearest name.
    """
    return recipe_file(recipe, _recipe_folders())


def known_recipes() -> list[str]:
    """Names of the recipes in ./recipes and of the shipped ones."""
    return recipe_names(_recipe_folders())


def parse_recipe(
    data: Mapping[str, Any], where: str = "recipe", set_keys: Sequence[str] = (), origin: Origin | None = None
) -> Recipe:
    """A recipe from plain values.

    Args:
        data: the values.
        where: the file, for messages.
        set_keys: paths that were given on the command line: what is wrong there is not in the file.
        origin: the file and its lines, where it was one.

    Raises:
        InputError: names every wrong key and value with its dotted path.
    """
    origin = origin or Origin()
    try:
        recipe = Recipe.model_validate(dict(data))
    except ValidationError as error:
        lines = [f"  {_blamed(line, set_keys, origin)}" for line in validation_lines(error, Recipe)]
        plural = "s" if len(lines) > 1 else ""
        raise InputError(f"{origin.path or where}: {len(lines)} error{plural}\n" + "\n".join(lines)) from None
    recipe._origin = origin
    return recipe


def apply_override(data: dict[str, Any], override: str) -> None:
    """Apply `a.b=value` (`stages.1.tokens=2M`); the value is YAML, `null` removes a section.

    Raises:
        InputError: no `=`, or a path that does not lead anywhere.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"--set {override!r}: write a.b=value, for example --set replay.share=0.2")
    try:
        value = parse_yaml(text, "--set", Yaml).data
    except InputError:
        raise InputError(f"--set {override!r}: {text!r} is not a valid YAML value") from None
    node: Any = data
    keys = path.split(".")
    if len(keys) > YAML_DEPTH:
        raise InputError(f"--set {shortened(override, 80)}: no recipe has {len(keys)} levels")
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise InputError(
                    f"--set {override!r}: {'.'.join(keys[:depth])} has entries 0 to {len(node) - 1}, not {key!r}"
                )
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
        else:
            raise InputError(f"--set {override!r}: {'.'.join(keys[:depth])} is a value and has no {key!r}")
        if last:
            node[index] = value
        else:
            if isinstance(node, dict) and node.get(index) is None:
                node[index] = {}
            node = node[index]


def _blamed(line: str, set_keys: Sequence[str], origin: Origin) -> str:
    """The line with `--set` in front where its key was given there, or with its line in the file."""
    place = re.sub(r"\[(\d+)\]", r".\1", line.partition(":")[0])
    given = any(place == key or place.startswith(f"{key}.") or key.startswith(f"{place}.") for key in set_keys)
    return f"--set {line}" if given else origin.numbered(line)
