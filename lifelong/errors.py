"""The exception hierarchy.

LifelongError                 ends a verb with exit code 2 and one message
├── InputError                a file, card, recipe or option is wrong
│   └── UnknownNameError      a name that is not in a registry; offers the nearest
├── ExpansionError            a growth target that cannot be reached exactly
├── CorruptionError           a committed file is not what the ledger says
├── StorageError              the disk is full, read-only or failing
└── VerificationError         exit code 3: something that was promised does not hold
    ├── InexactGrowthError        a grown model does not compute the same function
    └── ForgettingBudgetExceeded  a domain was forgotten by more than its budget
Interrupted                   exit code 130: stopped on request, resumable
"""

from __future__ import annotations

import difflib
import heapq
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# control characters but tab and newline, and what turns the direction of writing around
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text as a terminal may show it: what strangers write into cards and run folders must not steer it."""
    return _CONTROL.sub("", text)


class LifelongError(Exception):
    """Base of all errors: what was wrong, the value, where, what is allowed; shown without a traceback."""

    exit_code = 2


class InputError(LifelongError):
    """A file, card, recipe or option is wrong."""


class UnknownNameError(InputError):
    """A name that a registry does not hold."""

    def __init__(self, kind: str, name: object, known: Iterable[str], where: str = "") -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        place = f"{where}: " if where else ""
        super().__init__(f"{place}there is no {kind} {name!r}{did_you_mean(str(name), self.known)}")


class ExpansionError(LifelongError):
    """A growth target that cannot be reached exactly; the message names the nearest feasible sizes."""


class CorruptionError(LifelongError):
    """A committed file is not what the ledger says it is."""


class StorageError(LifelongError):
    """The disk refused: full, read-only, not permitted, or failing; what is committed stays as it is."""


class VerificationError(LifelongError):
    """Something that was promised does not hold; nothing is committed."""

    exit_code = 3


class InexactGrowthError(VerificationError):
    """A grown model does not compute the same function."""


class ForgettingBudgetExceeded(VerificationError):  # noqa: N818 - says what happened
    """A domain was forgotten by more than its budget allows."""


BrokenPromiseError = VerificationError
"""The name of earlier versions."""


class Interrupted(BaseException):
    """Stopped on request after saving; the same command continues.

    Like KeyboardInterrupt it is no Exception: no `except Exception` on the way may swallow it.
    """

    exit_code = 130


_COMPARED = 200


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to `name`, or None when nothing is close."""
    return next(iter(closest(name, known)), None)


def closest(name: str, known: Iterable[str], most: int = 3, cutoff: float = 0.6) -> list[str]:
    """The known names that are close to `name`, the closest first."""
    candidates = list(known)
    if len(candidates) > _COMPARED:  # difflib takes a second for ten thousand names
        candidates = heapq.nlargest(_COMPARED, candidates, key=lambda other: _common_pairs(name, other))
    return difflib.get_close_matches(name, candidates, n=most, cutoff=cutoff)


def _common_pairs(one: str, other: str) -> float:
    """Pairs of neighbouring letters that both have, less half of the difference in length."""
    return sum(one[i : i + 2] in other for i in range(len(one) - 1)) - abs(len(one) - len(other)) / 2


def did_you_mean(name: str, known: Iterable[str], limit: int = 8) -> str:
    """A clause that offers the nearest known name, and names what is allowed: all where few, else the three nearest."""
    known = sorted(known)
    close = closest(name, known)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    if len(known) <= limit:
        return f"{hint} Known: {', '.join(known) or 'none'}"
    others = close[1:] if close else closest(name, known, cutoff=0.0)
    return (
        f"{hint} {'Also near' if close else 'Nearest'}: {', '.join(others)} ({len(known)} in all)"
        if others
        else f"{hint} ({len(known)} in all)"
    )


def refusals(call: Callable[..., object], *arguments: Any, **options: Any) -> Iterator[str]:
    """The message of the `InputError` that a call raises, as a line of a longer one; nothing where it raises none."""
    try:
        call(*arguments, **options)
    except InputError as error:
        yield str(error)
