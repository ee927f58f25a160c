"""A stage stays at a constant; only the first warms up and cools down to it.

The end of a stage is annealed for its released model; the next stage starts from the weights before that. With
`average` nothing is annealed: the released model is the mean of the last weights, and no step of the stage is dropped.

Source: Ibrahim et al. 2024 (arXiv 2403.08763), section 7.
"""

from __future__ import annotations

from lifelong.train.policies._policy import LrPolicy, StageSpan, cosine


class Plugin(LrPolicy):
    """Infinite schedule."""

    keeps_trunk = True
    ends_constant = True

    def shape(self, span: StageSpan, progress: float) -> float:
        """The constant, then a straight line to the floor."""
        return self.decayed(self._constant(span, progress), progress)

    def _constant(self, span: StageSpan, progress: float) -> float:
        lr = self.lr
        if not span.is_first or lr.cooldown == 0:
            return lr.constant
        return cosine(lr.constant, min(1.0, max(0.0, progress - lr.warmup) / lr.cooldown))

    def warmup(self, span: StageSpan) -> float:
        """Warmup of the first stage alone."""
        return self.lr.warmup if span.is_first else 0.0

    def conflict(self) -> str | None:
        """Shares that leave no room for each other."""
        fits, last = self.lr.warmup + self.lr.cooldown + self.last_part <= 1, self.lr.average and "average"
        return (
            None if fits else f"warmup, cooldown and {last or 'decay'} are parts of the first stage: together at most 1"
        )
