"""The whole experiment in one YAML file. Every error is reported at once, with its path and the nearest valid name.

Reading a recipe imports neither torch nor transformers; what only they can judge (the keys of `train:`)
is checked by `train.arguments` before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from fractions import Fraction as Rational
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    field_validator,
    model_validator,
)

from lifelong.errors import UnknownNameError
from lifelong.evaluate.facts.settings import FactsSection
from lifelong.evaluate.settings import EvaluateSection, autocast_dtype
from lifelong.expand.settings import ExpandSection, Shape
from lifelong.inherit.settings import InheritSection
from lifelong.methods._settings import MethodSection
from lifelong.plugins import plugin_names
from lifelong.replay.settings import ReplaySection
from lifelong.schema import (
    PER_CENT,
    UNNAMED,
    Count,
    Fraction,
    Origin,
    PositiveCount,
    Section,
    expand_variables,
    parse_fraction,
)
from lifelong.select.settings import SelectSection
from lifelong.stream.shares import exact_shares
from lifelong.stream.tokenizers.settings import TokenizerSection
from lifelong.train.settings import LrSection

WRITES = frozenset({"clm"})  # objectives whose models answer a prompt
NOTHING_WATCHED = (
    "nothing is watched: what the base model knew outside of these domains may be lost unseen; name text that must not "
    "get worse, for example `watch: [general-text, general-code]` with `budget: {general-text: 2%}`, offline "
    "`watch: [python-reference, python-stdlib]`"
)


class ModelSection(Shape):
    """`checkpoint` of any supported model, or `family` and sizes of a randomly initialised one.

    Attributes:
        checkpoint: folder or hub id; may name environment variables.
        revision: commit hash or tag of a hub checkpoint.
        family: architecture of a randomly initialised model (lifelong list families).
        config: further keys of the family's configuration.
        dtype: of the weights that are trained and written; `auto` is the checkpoint's own, float32 for a new model.
        attn_implementation: of training: PyTorch's (`sdpa`), FlashAttention (`flash`), FlexAttention (`flex`).
    """

    checkpoint: str | None = None
    revision: str | None = None
    family: str | None = None
    config: dict[str, Any] = {}
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    attn_implementation: Literal["auto", "sdpa", "flash", "flex"] = "auto"

    @field_validator("checkpoint")
    @classmethod
    def _variables(cls, value: str | None) -> str | None:
        return None if value is None else expand_variables(value)

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSection:
        if (self.checkpoint is None) == (self.family is None):
            raise ValueError("name either `checkpoint` (start from a model) or `family` (randomly initialised)")
        if self.checkpoint is not None and (self.sizes() or self.config):
            raise ValueError("a checkpoint brings its own sizes; grow it with `expand:` in a stage")
        if self.family is not None and self.family not in (known := plugin_names("lifelong.expand.families")):
            raise ValueError(str(UnknownNameError("family", self.family, known)))
        return self


Share = Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, lt=1), PER_CENT]
Together = Annotated[
    Annotated[tuple[str, ...], Tag(f"{UNNAMED}list")] | Annotated[dict[str, Share], Tag(f"{UNNAMED}shares")],
    Discriminator(lambda value: f"{UNNAMED}{'shares' if isinstance(value, Mapping) else 'list'}"),
]


def _stem(card: str) -> str:
    return Path(card).stem


class StageSection(Section):
    """One domain of the stream.

    Attributes:
        domain: name or path of a domain card.
        tokens: how much of it, and of what is replayed beside it, is trained on.
        expand: sizes to which the model grows before the stage.
        select: which documents of the corpus are trained on.
        together_with: other domains that are trained on: a list in equal parts (joint training), or card -> its share
            of the stage's tokens; the stage's own domain gets the rest.
        train: TrainingArguments of this stage alone, over those of the recipe.
    """

    domain: str
    tokens: PositiveCount
    expand: ExpandSection | None = None
    select: SelectSection | None = None
    together_with: Together = ()
    train: dict[str, Any] = {}

    @model_validator(mode="after")
    def _shares_leave_something(self) -> StageSection:
        if isinstance(self.together_with, dict) and _stem(self.domain) in map(_stem, self.together_with):
            raise ValueError(f"together_with: {_stem(self.domain)!r} is the stage's own domain, which gets the rest")
        if isinstance(self.together_with, dict):
            exact_shares(self.together_with)
        return self

    @property
    def cards(self) -> tuple[str, ...]:
        """Its own domain, and those that it is trained on together with."""
        return (self.domain, *self.together_with)

    @cached_property
    def shares(self) -> tuple[Rational, ...] | None:
        """Of `cards`, in the stage's tokens; None where they come in equal parts."""
        weighted = isinstance(self.together_with, dict) and self.together_with
        return exact_shares(weighted) if weighted else None

    @property
    def own_tokens(self) -> int:
        """Tokens of the stage's own domain, at most."""
        return self.tokens if self.shares is None else math.ceil(self.tokens * self.shares[0])

    def tokens_by_card(self) -> dict[str, float]:
        """Tokens of each of `cards`."""
        shares = self.shares or (Rational(1, len(self.cards)),) * len(self.cards)
        return {card: float(self.tokens * share) for card, share in zip(self.cards, shares, strict=True)}


class RecoverSection(Section):
    """Plain training on the memory right after a growth (ELLE's function recovering warmup).

    Attributes:
        tokens: how much of it.
    """

    tokens: Count = 0


class Expectation(Section):
    """A value that `run` and `report` check: they end with exit code 3 where it is missed.

    Attributes:
        value: what the metric should be.
        tolerance: relative where it ends in %, else absolute.
    """

    value: float
    tolerance: str | float = "5%"

    @field_validator("tolerance")
    @classmethod
    def _is_a_number(cls, value: str | float) -> str | float:
        try:
            number = float(str(value).removesuffix("%"))
        except ValueError:
            number = math.nan
        if not number >= 0:
            raise ValueError(f"a number of 0 or more, or a percentage like '5%', not {value!r}")
        return value


class Recipe(Section):
    """One reproducible run.

    Attributes:
        name: of the run; its folder is runs/NAME.
        description: one sentence for lists and reports.
        model: where training starts.
        tokenizer: trained, taken from a checkpoint, or merged; a checkpoint of a model brings its own.
        objective: clm (causal) or mlm (masked language modelling).
        sequence_length: tokens of a training sequence.
        stages: the stream, one domain after the other.
        watch: domains that are measured and never trained on.
        inherit: a teacher, and how strongly it teaches until when.
        replay: a memory of earlier domains.
        recover: training right after a growth.
        methods: continual-learning methods (lifelong list methods).
        budget: domain -> how far its perplexity may rise above its best; a stage that exceeds it is not committed.
        train: TrainingArguments of transformers by their own names.
        lr: the learning rate over the whole stream.
        carry_optimizer: Adam's moments go on to the next stage, through the growth between.
        evaluate: held-out evaluation.
        facts: facts that are put into the text and followed.
        seed: of everything that is random.
        expect: metric -> the value that the run should give (lifelong list metrics).
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    model: ModelSection
    tokenizer: TokenizerSection | None = None
    objective: Literal["clm", "mlm"] = "clm"
    sequence_length: Annotated[int, Field(ge=8, le=10**7)] = 256
    stages: Annotated[tuple[StageSection, ...], Field(min_length=1)]
    watch: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    inherit: InheritSection | None = None
    replay: ReplaySection | None = None
    recover: RecoverSection | None = None
    methods: tuple[MethodSection, ...] = ()
    budget: dict[str, Annotated[Fraction, Field(gt=0)]] = {}
    train: dict[str, Any] = {}
    lr: LrSection | None = None
    carry_optimizer: bool | None = None
    evaluate: EvaluateSection = EvaluateSection()
    facts: FactsSection | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    expect: dict[str, Expectation] = {}
    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def origin(self) -> Origin:
        """The file that it was read from, with its lines."""
        return self._origin

    @field_validator("expect")
    @classmethod
    def _known_metrics(cls, value: dict[str, Expectation]) -> dict[str, Expectation]:
        known = [name.replace("-", "_") for name in plugin_names("lifelong.metrics")]
        for name in value:
            if name not in known:
                raise ValueError(str(UnknownNameError("metric", name, known)))
        return value

    @model_validator(mode="after")
    def _autocasts(self) -> Recipe:
        if self.evaluate.precision and self.evaluation_autocast is None:
            raise ValueError("`evaluate.precision: autocast` is that of training; set `train.bf16` or `train.fp16`")
        return self

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        if self.model.family is not None and self.tokenizer is None:
            raise ValueError(
                "`tokenizer` is missing: a randomly initialised model brings none; use "
                "{train: {kind: bpe, vocab_size: 8192}} or {checkpoint: ...}"
            )
        if self.tokenizer is not None and self.tokenizer.fixed and self.model.checkpoint is None:
            raise ValueError("`tokenizer.fixed` keeps the vocabulary of `model.checkpoint`; there is none")
        # a card named by its path: its name is known when it is read, and checked there
        cards = [stage.domain for stage in self.stages] + list(self.watch or ())
        named = {Path(card).stem for card in cards}
        for domain in self.budget if not any("/" in card for card in cards) else ():
            if domain not in named:
                raise ValueError(str(UnknownNameError("stage or watched domain", domain, named, "budget")))
        if len(set(self.watch or ())) < len(self.watch or ()):
            raise ValueError("`watch` names a domain twice")
        for key in ("lr_scheduler_type", "warmup_steps") if self.lr is not None else ():
            if any(section.get(key) is not None for section in (self.train, *(stage.train for stage in self.stages))):
                raise ValueError(f"`lr:` decides the learning rate of every stage; take train.{key} out")
        if self.replay and any(stage.together_with for stage in self.stages):
            raise ValueError("`stages[].together_with` trains on several domains at once; take `replay:` out")
        if self.facts and self.facts.stage >= len(self.stages):
            raise ValueError(f"`facts.stage` is {self.facts.stage}; the stages are 0 to {len(self.stages) - 1}")
        if self.inherit and self.inherit.on == "replay" and not self.replay:
            raise ValueError("`inherit.on: replay` teaches replayed tokens, but there is no `replay:` section")
        if self.replay and self.replay.mix == "budget" and not self.budget:
            raise ValueError("`replay.mix: budget` needs a budget, for example `budget: {wiki: 2%}`")
        return self

    @property
    def measured(self) -> set[str]:
        """Cards of the domains that are evaluated."""
        return {*(stage.domain for stage in self.stages), *(self.watch or ())}

    @property
    def evaluation_tokens(self) -> int:
        """Held-out tokens of every domain that is measured."""
        return self.evaluate.tokens_per_domain([stage.tokens for stage in self.stages], len(self.measured))

    @property
    def evaluation_autocast(self) -> str | None:
        """Name of the dtype of autocast that everything is evaluated under; None for the weights as they are."""
        return autocast_dtype(self.evaluate.precision, self.train)

    def tokens_between(self, index: int) -> int | None:
        """Held-out tokens of a domain after stage `index`; None after the last, and where most would be read anyway."""
        fewer = self.evaluate.tokens_between(self.stages[index].tokens, len(self.measured))
        last = index == len(self.stages) - 1
        return None if last or fewer is None or 2 * fewer > self.evaluation_tokens else fewer

    @property
    def watches_nothing(self) -> bool:
        """Whether nobody would see what a pre-trained model loses outside of the stream."""
        return self.model.checkpoint is not None and not self.watch

    @property
    def replay_mix(self) -> str:
        """Division of replay among earlier domains."""
        chosen = self.replay.mix if self.replay else None
        return chosen or ("budget" if self.budget else "uniform")

    def to_plain(self) -> dict[str, Any]:
        """Plain YAML values; what was not written in the recipe is written out with its default."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_yaml(self) -> str:
        """The complete recipe as YAML."""
        return yaml.safe_dump(self.to_plain(), sort_keys=False, allow_unicode=True)

    @property
    def tokenizer_size(self) -> int | None:
        """Vocabulary of a tokenizer that is still to be trained."""
        return self.tokenizer.train.vocab_size if self.tokenizer and self.tokenizer.train else None

    @property
    def chat_checkpoint(self) -> str | None:
        """Checkpoint whose tokenizer may bring a chat template; None where no chat prompts are to be answered."""
        if self.objective not in WRITES or self.evaluate.chat == "off" or self.model.checkpoint is None:
            return None
        return self.model.checkpoint if self.tokenizer is None else self.tokenizer.checkpoint

    def reads_all(self, stage: StageSection) -> bool:
        """Whether all text of a stage is read, however large: equal parts, a choice, a cache of all its blocks."""
        caches = self.inherit is not None and bool(self.inherit.teacher.caches())
        return bool((stage.together_with and stage.shares is None) or stage.select is not None or caches)

    def revision_of(self, source: str | None) -> str | None:
        """Revision of a hub checkpoint, where it is the one that training starts from."""
        return self.model.revision if source == self.model.checkpoint else None

    @property
    def protects_behaviour(self) -> bool:
        """Whether anything holds a trained model to what it did before: replay, a teacher, methods, watched text."""
        return bool(self.replay or self.inherit or self.methods or self.watch)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that changes a run; texts and expectations do not."""
        plain = {key: value for key, value in self.to_plain().items() if key not in ("description", "expect")}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
