"""The inheritance rate over a stage, from its settings and the share of the stage that is done.

Source: Qin et al. 2022, section 3.2 (linear, Heaviside, constant); SALT (arXiv 2410.18779) uses the step; dynamic is a
step whose rate is multiplied by the student's uncertainty about each sequence (`inherit/dynamic.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lifelong.errors import InputError, UnknownNameError

KINDS = ("linear", "constant", "step", "cosine", "dynamic")


@dataclass(frozen=True)
class Schedule:
    """`alpha` at the start; linear and cosine are zero at `until`, step and dynamic drop there, constant never ends."""

    kind: str
    peak: float
    until: float

    @property
    def is_dynamic(self) -> bool:
        """Whether the rate of a sequence is below that of the schedule, by the student's uncertainty."""
        return self.kind == "dynamic"

    def alpha(self, progress: float) -> float:
        """Inheritance rate when `progress` in [0, 1] of the stage is done."""
        if self.kind == "constant":
            return self.peak
        if progress >= self.until:
            return 0.0
        done = progress / self.until
        shape = {"step": 1.0, "dynamic": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        return self.peak * shape[self.kind]

    def over(self, progress: float) -> bool:
        """Whether the rate stays zero from here on."""
        return self.peak == 0 or (self.kind != "constant" and progress >= self.until)


def make_schedule(kind: str, *, alpha: float = 1.0, until: float = 0.3) -> Schedule:
    """A schedule by name.

    Raises:
        InputError: unknown kind, alpha outside [0, 1], or an end outside (0, 1].
    """
    if kind not in KINDS:
        raise UnknownNameError("schedule", kind, KINDS, "inherit.schedule")
    if not 0 <= alpha <= 1:
        raise InputError(f"inherit.alpha: must be in [0, 1], not {alpha:g}")
    if not 0 < until <= 1:
        raise InputError(f"inherit.until: must be in (0, 1], a share of the stage, not {until:g}")
    return Schedule(kind, alpha, until)
