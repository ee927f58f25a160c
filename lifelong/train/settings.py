"""The `lr:` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lifelong.errors import UnknownNameError
from lifelong.plugins import load_plugin, plugin_names
from lifelong.schema import PER_CENT, Section, parse_fraction

POLICIES = "lifelong.train.policies"


def _list_policies(schema: dict[str, Any]) -> None:
    schema["enum"] = plugin_names(POLICIES)


class LrSection(Section):
    """The learning rate over the whole stream; without it every stage follows `train.lr_scheduler_type`.

    Attributes:
        policy: a file in `train/policies/`.
        warmup: share of a stage in which it rises.
        decay: share of a stage in which wsd and infinite fall to the floor.
        floor: factor of the peak at the end.
        constant: factor at which infinite stays, after a cosine over `cooldown` of the first stage.
        cooldown: see `constant`.
        average: share of a stage whose weights are averaged for the released model, in place of the decay; the next
            stage starts from the raw weights.
    """

    policy: Annotated[str, Field(json_schema_extra=_list_policies)] = "rewarm"
    warmup: Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, lt=1), PER_CENT] = 0.05
    decay: Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, lt=1), PER_CENT] = 0.2
    floor: Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, lt=1), PER_CENT] = 0.0
    constant: Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, le=1), PER_CENT] = 1.0
    cooldown: Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, lt=1), PER_CENT] = 0.0
    average: Annotated[float | None, BeforeValidator(parse_fraction), Field(gt=0, le=1), PER_CENT] = None

    @field_validator("policy")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in (known := plugin_names(POLICIES)):
            raise ValueError(str(UnknownNameError("policy", value, known)))
        return value

    @model_validator(mode="after")
    def _fits(self) -> LrSection:
        policy = load_plugin(POLICIES, self.policy, kind="policy").Plugin(self)
        if conflict := policy.average_conflict() or policy.conflict():
            raise ValueError(conflict)
        return self
