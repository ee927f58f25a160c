"""The `evaluate:` section of a recipe."""

from __future__ import annotations

from typing import Literal

from lifelong.schema import Count, PositiveCount, Section


class EvaluateSection(Section):
    """Held-out evaluation after every stage; `probes` small ones on a log-spaced schedule during a stage."""

    tokens: PositiveCount = 100_000
    split: Literal["valid", "test"] = "valid"
    probes: Count = 0
    probe_tokens: PositiveCount = 4_000
    samples: Count = 1
