"""Sizes of a model and the `expand:` section of a stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lifelong.schema import Section, Size


class Shape(Section):
    """Sizes of a model; what is not named stays, or takes the family's default."""

    layers: Size | None = None
    hidden_size: Size | None = None
    intermediate_size: Size | None = None
    heads: Size | None = None
    kv_heads: Size | None = None
    head_dim: Size | None = None
    vocab_size: Size | None = None
    experts: Size | None = None
    experts_per_token: Size | None = None

    def sizes(self) -> dict[str, Any]:
        """The axes that are named."""
        return {axis: size for axis in Shape.model_fields if (size := getattr(self, axis)) is not None}


class EntryRates(Section):
    """Multiples of the stage's learning rate for entries that the growth kept and for those that it added."""

    old: Annotated[float, Field(ge=0)] = 1.0
    new: Annotated[float, Field(gt=0)] = 1.0


class ExpandSection(Shape):
    """Sizes after the growth at the start of a stage, how it is done, and what of the grown model the stage trains.

    `train: new` holds the old entries bit for bit, which is `rates: {old: 0}`.
    """

    positions: Size | None = None
    mode: Literal["exact", "elle"] = "exact"
    strategy: Literal["pad", "clone", "pairs"] = "pad"
    placement: Literal["interleaved", "last"] | list[Annotated[int, Field(ge=0)]] = "interleaved"
    approximate: bool = False
    train: Literal["all", "new"] | None = None
    rates: EntryRates | None = None

    @property
    def entry_rates(self) -> EntryRates | None:
        """Multiples of the learning rate by entry; None where all entries learn alike."""
        rates = self.rates or EntryRates()
        rates = EntryRates(old=0.0, new=rates.new) if self.train == "new" else rates
        return None if rates == EntryRates() else rates

    def sizes(self) -> dict[str, Any]:
        """The axes that are named."""
        return super().sizes() | ({} if self.positions is None else {"positions": self.positions})

    def options(self) -> dict[str, Any]:
        """Options of the growth, without its sizes."""
        return self.model_dump(include={"mode", "strategy", "placement", "approximate"})

    @model_validator(mode="after")
    def _something_grows(self) -> ExpandSection:
        if not self.sizes():
            raise ValueError(f"names no size; known: {', '.join([*Shape.model_fields, 'positions'])}")
        if self.train == "new" and self.rates is not None and "old" in self.rates.model_fields_set and self.rates.old:
            raise ValueError(f"`train: new` holds the old entries, and `rates.old` of {self.rates.old:g} moves them")
        return self
