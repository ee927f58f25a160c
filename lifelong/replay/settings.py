"""The `replay:` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from lifelong.schema import PER_CENT, Count, Section, parse_fraction


class ReplaySection(Section):
    """A bounded memory of earlier domains and its share of what is trained on, in tokens.

    `mix` is `budget` where the recipe has a budget, else `uniform`. `probes` are the small evaluations of a stage by
    which `adaptive` and `budget` steer; as many as cost a twentieth of the stage, twenty at most, where not given.

    Attributes:
        memory_tokens: size of the memory over all domains.
        share: of the trained tokens that is replayed.
        mix: how replay is divided among earlier domains.
        policy: which documents are kept.
        probes: evaluations of a stage that steer the mix.
        min_share: least share that a budget may set.
        max_share: largest share that a budget may set.
    """

    memory_tokens: Count = 200_000
    share: Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, lt=1), PER_CENT] = 0.3
    mix: Literal["uniform", "proportional", "adaptive", "budget"] | None = None
    policy: Annotated[
        Literal["reservoir", "experience-balanced", "domain-balanced", "loss-ranked", "diverse"],
        BeforeValidator(lambda value: value.replace("_", "-") if isinstance(value, str) else value),
    ] = "domain-balanced"
    probes: Count | None = None
    min_share: Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, lt=1), PER_CENT] = 0.01
    max_share: Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, lt=1), PER_CENT] = 0.5

    @model_validator(mode="after")
    def _bounds(self) -> ReplaySection:
        if self.min_share > self.max_share:
            raise ValueError(f"min_share {self.min_share} is greater than max_share {self.max_share}")
        if self.mix == "budget" and not self.min_share <= self.share <= self.max_share:
            raise ValueError(
                f"share {self.share} is outside min_share {self.min_share} and max_share {self.max_share}, "
                "between which the budget moves it"
            )
        return self
