"""Every stage warms up, and decays along a cosine to the floor.

Source: Ibrahim et al. 2024 (arXiv 2403.08763), section 3.
"""

from __future__ import annotations

from lifelong.train.policies._policy import LrPolicy, StageSpan, cosine


class Plugin(LrPolicy):
    """Re-warming and re-decaying."""

    def shape(self, span: StageSpan, progress: float) -> float:
        """A cosine from the end of the warm-up to the floor."""
        del span
        return cosine(self.lr.floor, self.after_warmup(progress))
