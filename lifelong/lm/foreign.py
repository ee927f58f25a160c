"""A checkpoint that somebody else made: safetensors alone are opened, no code that comes with it runs.

What transformers says of such a checkpoint names options that do not exist here: something else is said instead.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers

from lifelong.errors import InputError, LifelongError
from lifelong.files import named_entry

_INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model*.bin", "model*.bin", "*.ckpt", "*.pth")
_SHOWN = 300


@contextlib.contextmanager
def loading(what: str, source: str | Path, doing: str = "cannot be loaded") -> Iterator[None]:
    """Turn whatever transformers makes of a checkpoint into one message.

    Args:
        what: `checkpoint` or `tokenizer`.
        source: folder or hub id.
        doing: what did not work, where nothing better can be said.

    Raises:
        InputError: its weights are a pickle, it needs code of its own, it reaches out of its folder, it is damaged or
            not there.
    """
    name = f"{what} {str(source)!r}"
    check_folder(Path(source), name)
    try:
        yield
    except (LifelongError, MemoryError):
        raise
    # a foreign configuration can make transformers raise anything
    except Exception as error:
        absent = "" if Path(source).exists() else "there is no such folder, and from the hub: "
        raise InputError(f"{name}: {_reason(Path(source), error) or f'{absent}{doing}: {_said(error)}'}") from error


def check_folder(folder: Path, name: str) -> None:
    """Refuse a local checkpoint before anything of it is loaded.

    Raises:
        InputError: its weights are pickles alone, or it is an adapter of a model elsewhere.
        CorruptionError: the index of its weights names files elsewhere.
    """
    if not folder.is_dir():
        return
    if (folder / "adapter_config.json").exists():
        raise InputError(f"{name}: holds an adapter of another model; merge them into one checkpoint first")
    if (folder / _INDEX).is_file():
        with contextlib.suppress(ValueError, AttributeError, OSError):
            for shard in set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()):
                named_entry(folder, shard)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles and not any(folder.glob("*.safetensors")):
        kind = _class_name(_config(folder))
        raise InputError(
            f"{name}: has no safetensors, only {', '.join(pickles[:3])}{' and more' * (len(pickles) > 3)}: that is a "
            "pickle, which may run code and is never opened here. If you trust it, convert it: "
            f'python -c "from transformers import {kind} as M; M.from_pretrained({str(folder)!r})'
            f'.save_pretrained({str(folder)!r})"'
        )


def _class_name(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first if isinstance(first, str) and first.isidentifier() else "AutoModel"


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _reason(folder: Path, error: Exception) -> str | None:
    """What is said instead of what transformers says, where that would name what does not exist here."""
    text = str(error)
    if "trust_remote_code" in text or "custom code" in text:
        return "needs code that comes with it, which is never run here; take a model that transformers itself knows"
    if "does not recognize this architecture" in text or "Unrecognized model" in text:
        kind = _config(folder).get("model_type")
        return f"transformers {transformers.__version__} does not know its model_type {kind!r} (config.json)"
    return None


def _said(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
