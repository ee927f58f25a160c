"""The `tokenizer:` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from lifelong.schema import COUNT, PositiveCount, Section, expand_variables, parse_count


class TokenizerTraining(Section):
    """A tokenizer trained on the stream's own text."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: Annotated[int, BeforeValidator(parse_count), Field(ge=300, lt=2**24), COUNT] = 8192
    max_bytes: PositiveCount = 50_000_000


class TokenizerSection(Section):
    """`train`, `checkpoint` or `merge`; without any the model's own.

    `merge` names for each domain the checkpoint whose tokenizer reads it: that of its teacher. The run's vocabulary is
    the union of theirs, or with `fixed` that of the model's own checkpoint.
    """

    train: TokenizerTraining | None = None
    checkpoint: str | None = None
    merge: Annotated[dict[str, str], Field(min_length=1)] | None = None
    fixed: bool | None = None

    @field_validator("merge")
    @classmethod
    def _variables_in_merge(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        return None if value is None else {name: expand_variables(source) for name, source in value.items()}

    @field_validator("checkpoint")
    @classmethod
    def _variables(cls, value: str | None) -> str | None:
        return None if value is None else expand_variables(value)

    @model_validator(mode="after")
    def _one_origin(self) -> TokenizerSection:
        if sum(origin is not None for origin in (self.train, self.checkpoint, self.merge)) != 1:
            raise ValueError("name one of `train`, `checkpoint` and `merge`")
        if self.fixed and self.merge is None:
            raise ValueError("`fixed` belongs to `merge`: it keeps the model's own vocabulary")
        return self
