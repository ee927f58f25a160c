"""The `select:` section of a stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lifelong.schema import PER_CENT, Section, Size, expand_variables, parse_fraction


class SelectSection(Section):
    """Which documents of a corpus are trained on: `keep` of them, by bytes.

    `difference` (MiniPLM): by how much better `teacher` knows a document than the smaller `reference`.
    `challenge` (SALT): hard for the small `model`, but with the right tokens among its `top_k` guesses.
    A model is a checkpoint, or `previous`, the previous stage's model.
    """

    by: Literal["difference", "challenge"]
    keep: Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, le=1), PER_CENT] = 0.5
    teacher: str | None = None
    reference: str | None = None
    model: str | None = None
    top_k: Size = 10
    temperature: Annotated[float, Field(ge=0)] = 0.0
    sequence_length: Size | None = None

    @field_validator("teacher", "reference", "model")
    @classmethod
    def _variables(cls, value: str | None) -> str | None:
        return None if value is None else expand_variables(value)

    @model_validator(mode="after")
    def _its_models(self) -> SelectSection:
        needed = {"difference": ("teacher", "reference"), "challenge": ("model",)}[self.by]
        for name in ("teacher", "reference", "model"):
            if (getattr(self, name) is not None) != (name in needed):
                raise ValueError(f"`by: {self.by}` needs {' and '.join(needed)}, and no other model")
        return self

    def models(self) -> list[tuple[str, str]]:
        """Role and source of each model."""
        named = ((name, getattr(self, name)) for name in ("teacher", "reference", "model"))
        return [(name, source) for name, source in named if source is not None]
