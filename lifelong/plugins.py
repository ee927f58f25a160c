"""The folder is the registry: every module of a plugin package is one plugin, named by its file.

`metrics/bwt.py` is the metric `bwt`, `methods/ewc.py` the method `ewc`, `expand/families/llama.py` the
family `llama`. Adding one is adding one file. Names are listed without importing anything.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Literal

from lifelong.errors import UnknownNameError


def plugin_names(package: str) -> list[str]:
    """Names of the plugins in `package` (dotted), in alphabetical order; imports only the package itself.

    A module whose name begins with an underscore is not a plugin. Files use `_` where a name has `-`.
    """
    folder = importlib.import_module(package)
    modules = pkgutil.iter_modules(folder.__path__)
    return sorted(module.name.replace("_", "-") for module in modules if not module.name.startswith("_"))


def load_plugin(package: str, name: str, *, kind: str, where: str = "") -> ModuleType:
    """The module that holds plugin `name`; `-` and `_` are the same in names.

    Raises:
        UnknownNameError: there is no such file; offers the nearest name.
    """
    canonical = str(name).replace("_", "-")
    known = plugin_names(package)
    if canonical not in known:
        raise UnknownNameError(kind, name, known, where)
    return importlib.import_module(f"{package}.{canonical.replace('-', '_')}")


def shipped_folder(kind: Literal["domains", "recipes", "tasks"]) -> Path:
    """The folder of the cards, recipes or tasks that travel with the package.

    In an installed package they are package data (`lifelong/_shipped/<kind>`); in an editable checkout they
    stand at the top of the repository, next to the package.
    """
    package = Path(__file__).resolve().parent
    installed = package / "_shipped" / kind
    return installed if installed.is_dir() else package.parent / kind
