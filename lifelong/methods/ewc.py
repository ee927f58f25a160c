"""EWC: weights that the loss of earlier domains depends on are held, by the diagonal of the Fisher information.

`separate` keeps an anchor a stage, `online` one anchor with decayed importances, whatever the length of the stream.

Source: Kirkpatrick et al. 2017 (arXiv 1612.00796), equation 3; online: Schwarz et al. 2018 (arXiv 1805.06370),
section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from lifelong.errors import InputError
from lifelong.methods._importances import Anchor, AnchoredMethod, fisher_information, weights_of
from lifelong.methods._method import StageContext


@dataclass
class Plugin(AnchoredMethod):
    """Settings: `mode` separate or online, `decay` of older importances (online), `samples` rows for the Fisher."""

    mode: str = "separate"
    decay: float = 0.9
    samples: int = 64

    def __post_init__(self) -> None:
        if self.mode not in ("separate", "online"):
            raise InputError(f"methods.ewc.mode: must be separate or online, not {self.mode!r}")
        if not 0 <= self.decay <= 1:
            raise InputError(f"methods.ewc.decay: must be between 0 and 1, not {self.decay}")

    def planned_tokens(self, num_steps: int, sequence_length: int, earlier_domains: int) -> float:
        """One pass over the rows."""
        del num_steps, earlier_domains
        return float(self.samples * sequence_length)

    def end_stage(self, context: StageContext) -> None:
        """Measure what the stage's domain depends on."""
        fisher = fisher_information(context, self.samples)
        self.extra_tokens += self.samples * context.sequence_length
        if self.mode == "online" and self.anchors:
            before = self.anchors[0].importances
            fisher = {name: self.decay * before[name] + value for name, value in fisher.items()}
            self.anchors = []
        self.anchors.append(Anchor(weights_of(context.model), fisher))
