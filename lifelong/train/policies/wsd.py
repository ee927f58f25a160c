"""Every stage warms up, stays, and decays in a straight line over its last part.

Source: Hu et al. 2024, MiniCPM (arXiv 2404.06395).
"""

from __future__ import annotations

from lifelong.train.policies._policy import LrPolicy, StageSpan


class Plugin(LrPolicy):
    """Warm-up, stable, decay."""

    ends_constant = True

    def shape(self, span: StageSpan, progress: float) -> float:
        """The peak, then a straight line to the floor."""
        del span
        return self.decayed(1.0, progress)

    def conflict(self) -> str | None:
        """Shares that leave no room for each other."""
        fits, last = self.lr.warmup + self.last_part <= 1, self.lr.average and "average"
        return None if fits else f"warmup and {last or 'decay'} are parts of a stage: together at most 1"
