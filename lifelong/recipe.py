"""The whole experiment in one YAML file. Every error is reported at once, with its path and the nearest valid name.

Reading a recipe imports neither torch nor transformers; what only they can judge (the keys of `train:`)
is checked by `train.arguments` before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from lifelong.errors import InputError, UnknownNameError, nearest
from lifelong.plugins import plugin_names, shipped_folder
from lifelong.recipe_files import read_with_base, recipe_file, recipe_names


class Yaml(yaml.SafeLoader):
    """YAML as people write it: `on:` is a key and no truth value, `5e-4` is a number."""


Yaml.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)?(?:\.[0-9_]*)?(?:(?<=[0-9.])[eE][-+]?[0-9]+)?$(?<=[0-9.])(?<!^[-+.])"),
    list("-+0123456789."),
)

MULTIPLIERS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000, "t": 1_000_000_000_000}


def parse_count(value: object) -> object:
    """`2M` -> 2000000; whole numbers pass; anything else is left for the type check to refuse."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kKmMbBtT]?)\s*", value)
        if match:
            number = float(match[1].replace("_", "")) * MULTIPLIERS[match[2].lower()]
            if number == int(number):
                return int(number)
    return value


def expand_variables(text: str) -> str:
    """`$LIFELONG_DATA/x` with the variable's value.

    Raises:
        ValueError: the variable is not set.
    """
    expanded = os.path.expandvars(text)
    if match := re.search(r"\$\{?(\w+)", expanded):
        raise ValueError(f"the environment variable {match[1]} in {text!r} is not set")
    return expanded


def parse_fraction(value: object) -> object:
    """`2%` -> 0.02; numbers pass."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9.]+)\s*%\s*", value)):
        return float(match[1]) / 100
    return value


Count = Annotated[int, BeforeValidator(parse_count), Field(ge=0)]
PositiveCount = Annotated[int, BeforeValidator(parse_count), Field(ge=1)]
Fraction = Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of a recipe: unknown keys are errors, values are never coerced from other types."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class ModelSection(Shape):
    """`checkpoint` of any supported model, or `family` and sizes to start from random weights."""

    checkpoint: str | None = None
    revision: str | None = None
    family: str | None = None
    config: dict[str, Any] = {}

    @field_validator("checkpoint")
    @classmethod
    def _variables(cls, value: str | None) -> str | None:
        return None if value is None else expand_variables(value)

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSection:
        if (self.checkpoint is None) == (self.family is None):
            raise ValueError("name either `checkpoint` (start from a model) or `family` (start from random weights)")
        if self.checkpoint is not None and (self.sizes() or self.config):
            raise ValueError("a checkpoint brings its own sizes; grow it with `expand:` in a stage")
        if self.family is not None and self.family not in (known := plugin_names("lifelong.expand.families")):
            raise ValueError(str(UnknownNameError("family", self.family, known)))
        return self


class TokenizerTraining(Section):
    """A tokenizer trained on the stream's own text."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: Annotated[int, BeforeValidator(parse_count), Field(ge=300, lt=2**24)] = 8192
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


class ExpandSection(Shape):
    """Sizes after the growth at the start of a stage, and how it is done."""

    positions: Size | None = None
    mode: Literal["exact", "elle"] = "exact"
    strategy: Literal["pad", "clone", "pairs"] = "pad"
    placement: Literal["interleaved", "last"] | list[Annotated[int, Field(ge=0)]] = "interleaved"
    approximate: bool = False

    def sizes(self) -> dict[str, Any]:
        """The axes that are named."""
        return super().sizes() | ({} if self.positions is None else {"positions": self.positions})

    def options(self) -> dict[str, Any]:
        """How the growth is done."""
        return self.model_dump(include={"mode", "strategy", "placement", "approximate"})

    @model_validator(mode="after")
    def _something_grows(self) -> ExpandSection:
        if not self.sizes():
            raise ValueError(f"names no size; known: {', '.join([*Shape.model_fields, 'positions'])}")
        return self


class SelectSection(Section):
    """Which documents of a corpus are trained on: `keep` of them, by bytes.

    `difference` (MiniPLM): by how much better `teacher` knows a document than the smaller `reference`.
    `challenge` (SALT): hard for the small `model`, but with the right tokens among its `top_k` guesses.
    A model is a checkpoint, or `previous`, the model of the stage before.
    """

    by: Literal["difference", "challenge"]
    keep: Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, le=1)] = 0.5
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


class StageSection(Section):
    """One domain of the stream; `together_with` are others that are trained on in equal parts (joint training)."""

    domain: str
    tokens: PositiveCount
    expand: ExpandSection | None = None
    select: SelectSection | None = None
    together_with: tuple[str, ...] = ()
    train: dict[str, Any] = {}


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


class ReplaySection(Section):
    """A bounded memory of earlier domains and its share of what is trained on, in tokens.

    `mix` is `budget` where the recipe has a budget, else `uniform`. `probes` are the small evaluations of a stage by
    which `adaptive` and `budget` steer; as many as cost a twentieth of the stage, twenty at most, where not given.
    """

    memory_tokens: Count = 200_000
    share: Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, lt=1)] = 0.3
    mix: Literal["uniform", "proportional", "adaptive", "budget"] | None = None
    policy: Annotated[
        Literal["reservoir", "experience-balanced", "domain-balanced", "loss-ranked", "diverse"],
        BeforeValidator(lambda value: value.replace("_", "-") if isinstance(value, str) else value),
    ] = "domain-balanced"
    probes: Count | None = None
    min_share: Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, lt=1)] = 0.01
    max_share: Annotated[float, BeforeValidator(parse_fraction), Field(gt=0, lt=1)] = 0.5

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


class RecoverSection(Section):
    """Plain training on the memory right after a growth (ELLE's function recovering warmup)."""

    tokens: Count = 0


class EvaluateSection(Section):
    """Held-out evaluation after every stage; `probes` small ones on a log-spaced schedule during a stage."""

    tokens: PositiveCount = 100_000
    split: Literal["valid", "test"] = "valid"
    probes: Count = 0
    probe_tokens: PositiveCount = 4_000
    samples: Count = 1


class FactsSection(Section):
    """Invented facts put into the text of one stage at some shares of it, and asked for from then on."""

    stage: Annotated[int, Field(ge=0)] = 0
    at: Annotated[tuple[Annotated[float, BeforeValidator(parse_fraction), Field(ge=0, lt=1)], ...], Field(min_length=1)]
    count: PositiveCount = 12
    file: str | None = None
    repeats: PositiveCount = 1
    probes: PositiveCount = 12

    @field_validator("file")
    @classmethod
    def _variables(cls, value: str | None) -> str | None:
        return None if value is None else expand_variables(value)


class MethodSection(BaseModel):
    """A continual-learning method by name, with its own settings."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="after")
    def _known(self) -> MethodSection:
        if self.name.startswith("avalanche:"):
            return self
        known = plugin_names("lifelong.methods")
        if self.name.replace("_", "-") not in known:
            raise ValueError(str(UnknownNameError("method", self.name, known)))
        return self

    def settings(self) -> dict[str, Any]:
        """The method's own settings."""
        return dict(self.model_extra or {})


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


class Expectation(Section):
    """A value that `lifelong report` checks; the tolerance is relative if it ends in %, else absolute."""

    value: float
    tolerance: str | float = "5%"


class Recipe(Section):
    """One reproducible run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    model: ModelSection
    tokenizer: TokenizerSection | None = None
    objective: Literal["clm", "mlm"] = "clm"
    sequence_length: Annotated[int, Field(ge=8)] = 256
    stages: Annotated[tuple[StageSection, ...], Field(min_length=1)]
    inherit: InheritSection | None = None
    replay: ReplaySection | None = None
    recover: RecoverSection | None = None
    methods: tuple[MethodSection, ...] = ()
    budget: dict[str, Annotated[Fraction, Field(gt=0)]] = {}
    train: dict[str, Any] = {}
    lr: LrSection | None = None
    evaluate: EvaluateSection = EvaluateSection()
    facts: FactsSection | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    expect: dict[str, Expectation] = {}

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        if self.model.family is not None and self.tokenizer is None:
            raise ValueError(
                "`tokenizer` is missing: a model from random weights brings none; use "
                "{train: {kind: bpe, vocab_size: 8192}} or {checkpoint: ...}"
            )
        if self.tokenizer is not None and self.tokenizer.fixed and self.model.checkpoint is None:
            raise ValueError("`tokenizer.fixed` keeps the vocabulary of `model.checkpoint`; there is none")
        # a card named by its path: its name is known when it is read, and checked there
        named = {Path(stage.domain).stem for stage in self.stages}
        for domain in self.budget if not any("/" in stage.domain for stage in self.stages) else ():
            if domain not in named:
                raise ValueError(str(UnknownNameError("stage with domain", domain, named, "budget")))
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
    def replay_mix(self) -> str:
        """How replay is divided among earlier domains."""
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
    def fingerprint(self) -> str:
        """SHA-256 of everything that changes a run; texts and expectations do not."""
        plain = {key: value for key, value in self.to_plain().items() if key not in ("description", "expect")}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name (./recipes, then the shipped ones) or path, with `a.b=value` overrides applied.

    Raises:
        InputError: no such recipe, no YAML, or any number of wrong keys and values, all in one message.
    """
    path = find_recipe(str(recipe))
    data = read_with_base(path, _read_file, _recipe_folders())
    for override in overrides:
        apply_override(data, override)
    return parse_recipe(data, where=str(path))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=Yaml)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: a recipe is a mapping (name:, model:, stages: ...), this is a {type(data).__name__}")
    return data


def _recipe_folders() -> list[Path]:
    return [Path("recipes"), shipped_folder("recipes")]


def find_recipe(recipe: str) -> Path:
    """The file of a recipe name or path.

    Raises:
        InputError: there is none; offers the nearest name.
    """
    return recipe_file(recipe, _recipe_folders())


def known_recipes() -> list[str]:
    """Names of the recipes in ./recipes and of the shipped ones."""
    return recipe_names(_recipe_folders())


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from plain values.

    Raises:
        InputError: names every wrong key and value with its dotted path.
    """
    try:
        return Recipe.model_validate(dict(data))
    except ValidationError as error:
        lines = [f"  {_path(item['loc'])}: {_explain(item)}" for item in error.errors()]
        plural = "s" if len(lines) > 1 else ""
        raise InputError(f"{where}: {len(lines)} error{plural}\n" + "\n".join(lines)) from None


def apply_override(data: dict[str, Any], override: str) -> None:
    """Apply `a.b=value` (`stages.1.tokens=2M`); the value is YAML, `null` removes a section.

    Raises:
        InputError: no `=`, or a path that does not lead anywhere.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"--set {override!r}: write a.b=value, for example --set replay.share=0.2")
    try:
        value = yaml.load(text, Loader=Yaml)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        raise InputError(f"--set {override!r}: {text!r} is no YAML value") from None
    node: Any = data
    keys = path.split(".")
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise InputError(
                    f"--set {override!r}: {'.'.join(keys[:depth])} has entries 0 to {len(node) - 1}, not {key!r}"
                )
            index: Any = int(key)
        elif isinstance(node, dict):
            index = key
        else:
            raise InputError(f"--set {override!r}: {'.'.join(keys[:depth])} is a value and has no {key!r}")
        if last:
            node[index] = value
        else:
            if isinstance(node, dict) and node.get(index) is None:
                node[index] = {}
            node = node[index]


def _path(location: tuple[int | str, ...]) -> str:
    dotted = ""
    for part in location:
        if isinstance(part, int):
            dotted += f"[{part}]"
        elif not part.startswith(("literal[", "function-", "constrained-")):
            dotted += f".{part}" if dotted else part
    return dotted or "recipe"


def _explain(item: Any) -> str:
    location, kind = item["loc"], item["type"]
    if kind == "extra_forbidden":
        known = _fields_at(location[:-1])
        close = nearest(str(location[-1]), known)
        hint = f"; did you mean {close!r}?" if close else "."
        return f"unknown key{hint} Known: {', '.join(sorted(known))}"
    if kind == "missing":
        return "is missing"
    message = item["msg"].removeprefix("Value error, ")
    value = item.get("input")
    shown = "" if kind == "value_error" else f", not {_shorten(value)}"
    return f"{message[0].lower()}{message[1:]}{shown}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(location: Sequence[int | str]) -> list[str]:
    """Names of the keys that are allowed at a path of the recipe."""
    model: type[BaseModel] | None = Recipe
    for part in location:
        if isinstance(part, str) and model is not None and part in model.model_fields:
            model = _section_of(model.model_fields[part].annotation)
    return list(model.model_fields) if model is not None else []


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) is None:  # on Python 3.10 a tuple[X, ...] is a type too
        return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return next((found for argument in get_args(annotation) if (found := _section_of(argument)) is not None), None)
