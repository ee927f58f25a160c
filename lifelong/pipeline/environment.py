"""Installed versions of the packages that decide a run's figures, and the newest ones that our tests have run with."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from packaging.version import Version

RECORDED = ("lifelong", "torch", "transformers", "datasets", "tokenizers", "accelerate", "safetensors")

# `make test-newest` prints what is to be written here
NEWEST_TESTED = {
    "torch": "2.15.0",
    "transformers": "5.24.0",
    "datasets": "5.2.0",
    "tokenizers": "0.23.3",
    "accelerate": "1.15.0",
    "safetensors": "0.8.0",
    "peft": "0.21.2",
    "numpy": "2.5.5",
    "pydantic": "2.14.4",
    "typer": "0.29.2",
    "rich": "15.0.0",
}


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a run's figures."""
    return installed(RECORDED)


def computed_with() -> dict[str, Any]:
    """What may move the last bits of a figure: threads, device and packages of this process."""
    return {
        "threads": torch.get_num_threads(),
        "device": _device(),
        "packages": package_versions(),
        "peak_memory": peak_memory(),
    }


def peak_memory() -> int:
    """Most bytes so far: that torch has allocated on the accelerator, or of this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def other_versions_note(committed: Mapping[str, str]) -> str | None:
    """One line where a run goes on under other packages than those of its newest line, or None."""
    here = package_versions()
    moved = [
        f"{name} {committed.get(name, 'not there')} -> {here.get(name, 'not there')}"
        for name in sorted({*committed, *here})
        if committed.get(name) != here.get(name)
    ]
    return f"goes on under other versions, so the last bits may differ: {', '.join(moved)}" if moved else None


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def newer_than_tested() -> dict[str, str]:
    """Installed versions, by package, that are newer than any that the tests have run with."""
    return {
        package: found
        for package, found in installed(NEWEST_TESTED).items()
        if Version(Version(found).public) > Version(NEWEST_TESTED[package])
    }


def untested_note() -> str | None:
    """One line about packages that are newer than any that was tested, or None where there is none."""
    newer = [
        f"{package} {found} (tested up to {NEWEST_TESTED[package]})" for package, found in newer_than_tested().items()
    ]
    return f"newer than any version that lifelong was tested with: {', '.join(newer)}" if newer else None


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Version of each package that is installed."""
    versions = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def environment() -> dict[str, Any]:
    """Environment of a run: machine and packages."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "device": _device(),
        "packages": package_versions(),
        "newer_than_tested": newer_than_tested(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
