"""The `lr:` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from lifelong.schema import Section, parse_fraction


class LrSection(Section):
    """The learning rate over the whole stream; without it every stage follows `train.lr_scheduler_type`."""

    policy: Literal["rewarm", "continue", "wsd", "infinite", "autoregressive"] = "rewarm"
    warmup: Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, lt=1)] = 0.05
    decay: Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, lt=1)] = 0.2
    floor: Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, lt=1)] = 0.0
    constant: Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, le=1)] = 1.0
    cooldown: Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _fits(self) -> LrSection:
        if self.policy == "infinite" and self.warmup + self.cooldown + self.decay > 1:
            raise ValueError("warmup, cooldown and decay are parts of the first stage: together at most 1")
        if self.policy == "wsd" and self.warmup + self.decay > 1:
            raise ValueError("warmup and decay are parts of a stage: together at most 1")
        return self
