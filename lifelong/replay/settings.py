"""The `replay:` section of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, create_model, model_validator

from lifelong.schema import PER_CENT, Count, PositiveCount, Section, Size, parse_fraction

SELF_GENERATED = "self-generated"
"""Name of the text that a model has written, where others have the name of their domain."""


class _Generate(Section):
    """Text that the previous model writes at the start of a stage, to be replayed like text that was kept.

    `start`: a card whose documents begin the streams, by their first `start_tokens` tokens; by the start token alone
    where not given. `length`: tokens of a stream; the model's context, at most 2,048, where not given. `batch_size`:
    streams written side by side; as many as have room in a GiB of keys and values, 32 at most, where not given.
    `temperature`, `top_k` and `top_p` change the distribution that is drawn from: the model's own is 1, none and none.
    """

    tokens: PositiveCount
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_k: Size | None = None
    top_p: Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, le=1)] | None = None
    start: str | None = None
    start_tokens: Size = 16
    length: PositiveCount | None = None
    batch_size: Size | None = None

    @property
    def keeps_all(self) -> bool:
        """Whether what earlier models wrote stays, in equal parts; otherwise the newest writes all of it anew."""
        return bool(getattr(self, "from") == "every")

    def tokens_of(self, generation: int) -> int:
        """Tokens that the model of a generation, from 0, has to write."""
        return self.tokens // (generation + 1) if self.keeps_all else self.tokens


if TYPE_CHECKING:
    GenerateSection = _Generate
else:  # `from` is a word of Python, and no field of a class can be written so
    GenerateSection = create_model(
        "GenerateSection", __base__=_Generate, __module__=__name__, **{"from": (Literal["newest", "every"], "newest")}
    )


class ReplaySection(Section):
    """A bounded memory of earlier domains and its share of what is trained on, in tokens.

    `mix` is `budget` where the recipe has a budget, else `uniform`. `probes` are the small evaluations of a stage by
    which `adaptive` and `budget` steer; as many as cost a twentieth of the stage, twenty at most, where not given.

    Attributes:
        memory_tokens: size of the memory over all domains.
        share: of the trained tokens that is replayed.
        weights: domain -> factor on its part of what `mix` gives it; 1 for a domain that is not named.
        mix: how replay is divided among earlier domains.
        policy: which documents are kept.
        probes: evaluations of a stage that steer the mix.
        proxy: card -> tokens of it that are in the memory before the first stage, instead of text that nobody has.
        generate: what the previous model writes is replayed beside the memory, and bounded on its own.
        min_share: least share that a budget may set.
        max_share: largest share that a budget may set.
    """

    memory_tokens: Count = 200_000
    share: Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, lt=1), PER_CENT] = 0.3
    weights: Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)] | None = None
    mix: Literal["uniform", "proportional", "adaptive", "budget"] | None = None
    policy: Annotated[
        Literal["reservoir", "experience-balanced", "domain-balanced", "loss-ranked", "diverse"],
        BeforeValidator(lambda value: value.replace("_", "-") if isinstance(value, str) else value),
    ] = "domain-balanced"
    probes: Count | None = None
    proxy: Annotated[dict[str, PositiveCount], Field(min_length=1)] | None = None
    generate: GenerateSection | None = None
    min_share: Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, lt=1), PER_CENT] = 0.01
    max_share: Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, lt=1), PER_CENT] = 0.5

    @model_validator(mode="after")
    def _bounds(self) -> ReplaySection:
        if self.proxy and (wanted := sum(self.proxy.values())) > self.memory_tokens:
            raise ValueError(f"proxy: {wanted:,} tokens do not fit into memory_tokens {self.memory_tokens:,}")
        if self.min_share > self.max_share:
            raise ValueError(f"min_share {self.min_share} is greater than max_share {self.max_share}")
        if self.mix == "budget" and not self.min_share <= self.share <= self.max_share:
            raise ValueError(
                f"share {self.share} is outside min_share {self.min_share} and max_share {self.max_share}, "
                "between which the budget moves it"
            )
        return self
