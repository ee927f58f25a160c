"""The `inherit:` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_serializer, model_validator

from lifelong.schema import Fraction, Section, Size, expand_variables, parse_fraction


class TeacherSection(Section):
    """Who teaches: a `model` (`previous` or a checkpoint; also written as its name alone), or one of the others.

    `cache` is a folder of `lifelong cache`, `of` the model that it must have been written from; `by_domain` has a
    teacher for each domain, others are not taught; `mixture` is mixed in probability space.
    """

    model: str | None = None
    cache: str | None = None
    of: str | None = None
    by_domain: dict[str, TeacherSection] = {}
    mixture: tuple[WeightedTeacher, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("model", "cache", "of")
    @classmethod
    def _variables(cls, value: str | None) -> str | None:
        return None if value is None else expand_variables(value)

    @model_validator(mode="after")
    def _one_kind(self) -> TeacherSection:
        kinds = [key for key in ("model", "cache", "by_domain", "mixture") if getattr(self, key)]
        if len(kinds) != 1:
            found = ", ".join(kinds) or "none"
            raise ValueError(f"is one of model, cache, by_domain and mixture, here: {found}")
        if self.of is not None and self.cache is None:
            raise ValueError("`of` says which model a `cache` is of; there is no cache")
        return self

    @model_serializer(mode="wrap")
    def _short(self, plain: Any) -> Any:
        return self.model if self.model is not None else {key: value for key, value in plain(self).items() if value}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
        """A name alone is a teacher too."""
        return {"anyOf": [{"type": "string"}, handler(core)]}

    def leaves(self) -> list[TeacherSection]:
        """The models and caches in it."""
        inner = [*self.by_domain.values(), *(part.teacher for part in self.mixture)]
        return [leaf for teacher in inner for leaf in teacher.leaves()] if inner else [self]


class WeightedTeacher(Section):
    """A part of a mixture; `weight` is a number for all domains, or one for each that is named."""

    teacher: TeacherSection
    weight: Annotated[float, Field(ge=0)] | dict[str, Annotated[float, Field(ge=0)]] = 1.0


def parse_until(value: object) -> object:
    """`surpassed`, or a share of the stage in (0, 1]."""
    if value == "surpassed":
        return value
    value = parse_fraction(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"is a share of the stage in (0, 1], or `surpassed`, not {value!r}")
    return float(value)


class InheritSection(Section):
    """Knowledge inheritance; `on` says which tokens are taught, `looks` how often `until: surpassed` is checked."""

    teacher: TeacherSection = TeacherSection(model="previous")
    on: Literal["all", "new", "replay"] = "all"
    alpha: Fraction = 1.0
    schedule: Literal["linear", "constant", "step", "cosine"] = "linear"
    until: Annotated[float | str, BeforeValidator(parse_until)] = 0.3
    temperature: Annotated[float, Field(gt=0)] = 2.0
    bernoulli: bool = False
    looks: Size = 20

    @property
    def last_progress(self) -> float:
        """Share of the stage after which the rate is zero at the latest."""
        return 1.0 if isinstance(self.until, str) else self.until
