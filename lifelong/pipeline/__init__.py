"""The lifelong loop: `for stage in stream: expand, train, evaluate, commit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lifelong.exports import lazy_exports

if TYPE_CHECKING:
    from lifelong.pipeline.loop import extend_run, run_recipe

__all__ = ["extend_run", "run_recipe"]
__getattr__, __dir__ = lazy_exports(__name__, dict.fromkeys(__all__, "lifelong.pipeline.loop"))
