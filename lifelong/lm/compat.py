"""Names that differ between the supported versions of transformers, asked of the installed one by its signatures."""

from __future__ import annotations

import inspect
from typing import Any


def cache_argument(model: Any) -> str:
    """Name under which `model.forward` takes and returns its key-value cache.

    `cache`; before transformers 5.24 `past_key_values`.
    """
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
