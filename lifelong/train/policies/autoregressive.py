"""Every stage is a cosine from a peak that falls from stage to stage.

Source: Roth et al. 2024 (arXiv 2408.14471), autoregressive meta-schedule, used by TiC-LM (arXiv 2504.02107).
"""

from __future__ import annotations

from lifelong.train.policies._policy import LrPolicy, StageSpan, cosine


class Plugin(LrPolicy):
    """Warm-up and cosine below a falling peak."""

    def shape(self, span: StageSpan, progress: float) -> float:
        """A cosine from the end of the warm-up to the floor, scaled by the stage's peak."""
        return self.peak(span) * cosine(self.lr.floor, self.after_warmup(progress))

    def peak(self, span: StageSpan) -> float:
        """Peak of the stage: where a cosine over everything up to its end would be at its beginning."""
        return cosine(self.lr.floor, span.before / (span.before + span.own))
