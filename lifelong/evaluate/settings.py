"""The `evaluate:` section of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from lifelong.schema import Count, PositiveCount, Section


class EvaluateSection(Section):
    """Held-out evaluation after every stage; `probes` small ones on a log-spaced schedule during a stage.

    `chat: off` leaves out the prompts that a base with a chat template answers before and after every stage.
    """

    tokens: PositiveCount = 100_000
    split: Literal["valid", "test"] = "valid"
    probes: Count = 0
    probe_tokens: PositiveCount = 4_000
    samples: Count = 1
    chat: Literal["auto", "off"] | None = None

    @field_validator("chat")
    @classmethod
    def _auto_is_the_default(cls, value: str | None) -> str | None:
        # a recipe that does not say is written as before, so that its fingerprint stays what it was
        return None if value == "auto" else value
