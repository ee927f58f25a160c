"""Interface of a learning-rate policy: its schedule for each stage of a stream.

A policy file defines one subclass of `LrPolicy` named `Plugin`. Shares are of one stage, factors of the peak
learning rate, `train.learning_rate`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from lifelong.plugins import load_plugin
from lifelong.train.settings import POLICIES, LrSection


@dataclass(frozen=True)
class StageSpan:
    """Span of a stage in its stream, in tokens."""

    before: int
    own: int
    total: int

    @property
    def is_first(self) -> bool:
        """Whether it is the first stage."""
        return self.before == 0


@dataclass(frozen=True)
class LrPolicy(ABC):
    """Base of all policies.

    `keeps_trunk` says that the next stage starts from before the decay of this one, `ends_constant` that a stage
    without its decay stays at one rate, so that its last weights can be averaged instead.
    """

    lr: LrSection

    keeps_trunk: ClassVar[bool] = False
    ends_constant: ClassVar[bool] = False

    @abstractmethod
    def shape(self, span: StageSpan, progress: float) -> float:
        """Factor at `progress` in [0, 1] of a stage, the warm-up aside."""

    def peak(self, span: StageSpan) -> float:
        """Highest factor of a stage."""
        del span
        return 1.0

    def warmup(self, span: StageSpan) -> float:
        """Share of a stage in which the learning rate rises."""
        del span
        return self.lr.warmup

    def conflict(self) -> str | None:
        """Which settings do not fit together; None where all do."""
        return None

    def average_conflict(self) -> str | None:
        """Why the weights of this policy cannot be averaged as asked for; None where they can be or need not."""
        if self.lr.average is None:
            return None
        if not self.ends_constant:
            return (
                f"average: the mean of weights stands for a decay where the rate is constant; {self.lr.policy} has its "
                "own decay: choose policy infinite or wsd, or leave average out"
            )
        if self.lr.decay != type(self.lr).model_fields["decay"].default:
            return "average and decay: the mean of the last weights takes the place of the decay; leave one of them out"
        return None

    def factor(self, span: StageSpan, progress: float) -> float:
        """Learning rate over the peak at `progress` in [0, 1] of a stage."""
        warmup = self.warmup(span)
        rise = min(1.0, progress / warmup) if warmup > 0 else 1.0
        return max(0.0, rise * self.shape(span, progress))  # the last fall may round to just below zero

    @property
    def last_part(self) -> float:
        """Share of a stage that makes the released model: decayed, or averaged."""
        return self.lr.decay if self.lr.average is None else self.lr.average

    @property
    def decay_start(self) -> float:
        """Progress at which the last `decay` begins."""
        return 1.0 - self.lr.decay

    @property
    def leaves_trunk(self) -> bool:
        """Whether the next stage starts from other weights than the released ones."""
        return self.keeps_trunk or self.lr.average is not None

    def trunk_step(self, num_steps: int) -> int | None:
        """Steps after which the weights are kept for the next stage; None where it starts from the released ones."""
        if self.lr.average is not None:
            return num_steps
        return max(1, round(self.decay_start * num_steps)) if self.keeps_trunk else None

    def decayed(self, top: float, progress: float) -> float:
        """`top`, and over the last `decay` a straight line to the floor; `top` alone where weights are averaged."""
        done = progress - self.decay_start
        return top if done <= 0 or self.lr.average is not None else top + (self.lr.floor - top) * done / self.lr.decay

    def after_warmup(self, progress: float) -> float:
        """Part of what follows the warm-up that is done."""
        return max(0.0, progress - self.lr.warmup) / (1 - self.lr.warmup)


def cosine(floor: float, progress: float) -> float:
    """Decay from 1 to `floor` along half a cosine."""
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_policy(lr: LrSection) -> LrPolicy:
    """The policy that a recipe names, with its settings."""
    policy: LrPolicy = load_plugin(POLICIES, lr.policy, kind="policy", where="lr.policy").Plugin(lr)
    return policy
