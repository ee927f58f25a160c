"""Every stage is a part of one cosine over the tokens of all stages; only the first warms up."""  # noqa: N999

from __future__ import annotations

from lifelong.train.policies._policy import LrPolicy, StageSpan, cosine


class Plugin(LrPolicy):
    """One cosine over the stream."""

    def shape(self, span: StageSpan, progress: float) -> float:
        """The stage's part of the cosine."""
        return cosine(self.lr.floor, (span.before + progress * span.own) / span.total)

    def warmup(self, span: StageSpan) -> float:
        """Warmup of the first stage alone."""
        return self.lr.warmup if span.is_first else 0.0
