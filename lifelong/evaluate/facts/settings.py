"""The `facts:` section of a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator

from lifelong.schema import PER_CENT, PositiveCount, Section, expand_variables, parse_fraction


class FactsSection(Section):
    """Invented facts put into the text of one stage at some shares of it, and asked for from then on."""

    stage: Annotated[int, Field(ge=0)] = 0
    at: Annotated[
        tuple[Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, lt=1), PER_CENT], ...], Field(min_length=1)
    ]
    count: PositiveCount = 12
    file: str | None = None
    repeats: PositiveCount = 1
    probes: PositiveCount = 12

    @field_validator("file")
    @classmethod
    def _variables(cls, value: str | None) -> str | None:
        return None if value is None else expand_variables(value)
