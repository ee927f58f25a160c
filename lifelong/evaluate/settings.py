"""The `evaluate:` section of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import field_validator

from lifelong.schema import Count, PositiveCount, Section

AUTO_SHARE = 1 / 7  # of the arithmetic of training
BETWEEN_SHARE = 1 / 50  # of the arithmetic of a stage
FEWEST_TOKENS, MOST_TOKENS = 4_000, 100_000
FEWEST_BETWEEN = 3_000


class EvaluateSection(Section):
    """Held-out evaluation after every stage; `probes` small ones on a log-spaced schedule during a stage.

    `tokens` are those of a domain; `auto` takes as many, up to 100k, as cost a seventh of what is trained, and reads
    them whole before the first stage and after the last. After a stage between, what a full reading says since then is
    estimated from so many that they cost a fiftieth of the stage.
    `chat: off` leaves out the prompts that a base with a chat template answers before and after every stage.

    `precision: autocast` evaluates as `train.bf16` or `train.fp16` trains, faster on accelerators made for it; all of a
    run is measured in the same.

    Attributes:
        tokens: held-out tokens of every domain, or auto.
        split: the split of the cards that is held out.
        probes: small evaluations during a stage.
        probe_tokens: held-out tokens of a domain in a probe.
        samples: texts that the model continues for every domain, before and after.
        chat: auto or off.
        precision: weights (the weights as they are held) or autocast.
    """

    tokens: Literal["auto"] | PositiveCount = "auto"
    split: Literal["valid", "test"] = "valid"
    probes: Count = 0
    probe_tokens: PositiveCount = 4_000
    samples: Count = 1
    chat: Literal["auto", "off"] | None = None
    precision: Literal["weights", "autocast"] | None = None

    @field_validator("chat", "precision")
    @classmethod
    def _default_is_unsaid(cls, value: str | None) -> str | None:
        # a recipe that does not say is written as before, so that its fingerprint stays what it was
        return None if value in ("auto", "weights") else value

    def tokens_per_domain(self, stage_tokens: Sequence[int], num_domains: int) -> int:
        """Held-out tokens of a domain.

        Under `auto` all evaluations of a run, that before the first stage included, cost at most `AUTO_SHARE` of its
        training: a token that is only evaluated costs a third of one that is trained on.

        Args:
            stage_tokens: budget of every stage of the recipe.
            num_domains: that are measured after each.
        """
        if self.tokens != "auto":
            return self.tokens
        affordable = 3 * AUTO_SHARE * sum(stage_tokens) / (len(stage_tokens) + 1) / num_domains
        return max(FEWEST_TOKENS, min(MOST_TOKENS, int(affordable)))

    def tokens_between(self, stage_tokens: int, num_domains: int) -> int | None:
        """Held-out tokens of a domain after a stage between the first and the last; None: all of them.

        Args:
            stage_tokens: budget of the stage.
            num_domains: that are measured after it.
        """
        if self.tokens != "auto":
            return None
        return max(FEWEST_BETWEEN, int(3 * BETWEEN_SHARE * stage_tokens / num_domains))


def autocast_dtype(precision: str | None, train: Mapping[str, Any]) -> str | None:
    """Name of the dtype that `evaluate.precision: autocast` evaluates in; `train` is the section of the recipe."""
    if precision != "autocast":
        return None
    return "bfloat16" if train.get("bf16") else "float16" if train.get("fp16") else None
