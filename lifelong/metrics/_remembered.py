"""Results of functions of a history or a matrix, which never change, kept as long as their argument lives."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def remembered(function: Callable[[Argument], Result]) -> Callable[[Argument], Result]:
    """The function, computed once an argument; by identity: a matrix of thousands of stages is slow to hash.

    Terminal, page, Markdown and figures of a run each ask for the same figures.
    """
    known: dict[int, Any] = {}

    @functools.wraps(function)
    def asked(argument: Argument) -> Result:
        key = id(argument)
        if key not in known:
            known[key] = function(argument)
            weakref.finalize(argument, known.pop, key, None)
        found: Result = known[key]
        return found

    return asked
