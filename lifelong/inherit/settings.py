"""The `inherit:` section of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_serializer, model_validator
from pydantic.fields import FieldInfo

from lifelong.plugins import load_plugin, plugin_names
from lifelong.schema import Fraction, Section, Size, parse_fraction

if TYPE_CHECKING:
    from lifelong.inherit.teachers._teacher import Given, Teacher, TeacherInputs


PREVIOUS = "previous"
"""Name of the previous stage's model."""
_KINDS = "lifelong.inherit.teachers"
_IN_KINDS: ContextVar[bool] = ContextVar("_IN_KINDS", default=False)


class TeacherSection(Section):
    """Teacher of a recipe: one of the kinds in `inherit/teachers`, by its key; a name alone is a `model`.

    A kind is a subclass with a field of that key, which has to be there, and perhaps others with defaults; the
    description of those continues the sentence "`key` ...". What a kind does not define is that of the teachers in it.
    """

    place: ClassVar[int] = 100  # in messages that list the kinds; a new one comes last
    alone: ClassVar[bool] = False  # whether the key alone, as a word, is a teacher

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, value: Any, as_it_is: Callable[[Any], TeacherSection]) -> TeacherSection:
        if cls is not TeacherSection or not isinstance(value, dict | str):
            return as_it_is(value)
        if isinstance(value, str):
            value = {value: True} if value in teacher_kinds() and teacher_kinds()[value].alone else {"model": value}
        kinds, known = teacher_kinds(), cls.known_keys()
        unknown = {key: entry for key, entry in value.items() if key not in known}
        written = [name for name in kinds if value.get(name) not in (None, "", {}, [], ())]
        if unknown and not written:
            return as_it_is(unknown)  # refuses them
        made = [
            kinds[name].model_validate({k: v for k, v in value.items() if k in kinds[name].model_fields} | unknown)
            for name in written
        ]
        if len(made) != 1:
            *others, last = kinds
            raise ValueError(f"is one of {', '.join(others)} and {last}, here: {', '.join(written) or 'none'}")
        for name, kind in kinds.items():
            for key, field in kind.model_fields.items():
                if name not in written and key != name and value.get(key) is not None:
                    raise ValueError(f"`{key}` {field.description}; there is no {name}")
        return made[0]

    @classmethod
    def known_keys(cls) -> dict[str, FieldInfo]:
        """Those of every kind."""
        kinds = teacher_kinds().values() if cls is TeacherSection else (cls,)
        return {key: field for kind in kinds for key, field in kind.model_fields.items()}

    @model_serializer
    def _short(self) -> Any:
        return self.written()

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
        """A name alone is a teacher too."""
        if cls is not TeacherSection or _IN_KINDS.get():
            return handler(core)  # a teacher within a teacher becomes a reference to what is being described here
        token = _IN_KINDS.set(True)
        try:
            kinds = [{**handler(kind.__pydantic_core_schema__), "title": key} for key, kind in teacher_kinds().items()]
        finally:
            _IN_KINDS.reset(token)
        return {"anyOf": [{"type": "string"}, *kinds]}

    def written(self) -> Any:
        """The section as a recipe has it, without defaults."""
        return {key: value for key in type(self).model_fields if (value := getattr(self, key))}

    def inner(self) -> Sequence[TeacherSection]:
        """The teachers that it is made of."""
        return ()

    def models(self) -> list[str]:
        """Models that run beside the student, `previous` among them."""
        return [name for teacher in self.inner() for name in teacher.models()]

    def caches(self) -> list[str]:
        """Folders of targets that `lifelong cache` wrote."""
        return [folder for teacher in self.inner() for folder in teacher.caches()]

    def reads_memory(self) -> bool:
        """Whether it needs targets that are stored with the memory."""
        return any(teacher.reads_memory() for teacher in self.inner())

    def routes(self, domains: Sequence[str]) -> list[tuple[str, list[str]]]:
        """Checkpoints, and which of `domains` each is to teach."""
        return [route for teacher in self.inner() for route in teacher.routes(domains)]

    def flops_per_token(self, forward: Mapping[str, float]) -> float:
        """FLOPs of a token that is taught, from those of a forward pass of each model that will run."""
        return sum(teacher.flops_per_token(forward) for teacher in self.inner())

    def check(self, given: Given) -> Iterator[str]:
        """Errors of the section, as far as they can be found without weights."""
        for teacher in self.inner():
            yield from teacher.check(given)

    def build(self, inputs: TeacherInputs, domains: Sequence[str]) -> Teacher | None:
        """The teacher of a stage for some domains; None where it is not there yet.

        Raises:
            InputError: it does not fit the student or the stream.
        """
        raise NotImplementedError


def teacher_kinds() -> dict[str, type[TeacherSection]]:
    """Every kind of teacher, by its key in a recipe."""
    plugins = {name: load_plugin(_KINDS, name, kind="kind of teacher").Plugin for name in plugin_names(_KINDS)}
    in_place = sorted(plugins.items(), key=lambda item: item[1].place)
    return {name.replace("-", "_"): plugin for name, plugin in in_place}


def parse_until(value: object) -> object:
    """`surpassed`, or a share of the stage in (0, 1]."""
    if value == "surpassed":
        return value
    value = parse_fraction(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"must be a share of the stage in (0, 1], or `surpassed`, not {value!r}")
    return float(value)


class InheritSection(Section):
    """Knowledge inheritance; `on` says which tokens are taught, `looks` how often `until: surpassed` is checked."""

    teacher: TeacherSection = Field(default=PREVIOUS, validate_default=True)
    on: Literal["all", "new", "replay"] = "all"
    alpha: Fraction = 1.0
    schedule: Literal["linear", "constant", "step", "cosine", "dynamic"] = "linear"
    until: Annotated[float | str, BeforeValidator(parse_until)] = 0.3
    temperature: Annotated[float, Field(gt=0)] = 1.0
    bernoulli: bool = False
    looks: Size = 20

    @model_validator(mode="after")
    def _rate_known_before_the_draw(self) -> InheritSection:
        if self.bernoulli and self.schedule == "dynamic":
            raise ValueError(
                "`bernoulli` draws the sequences that are taught by their rate, which `schedule: dynamic` knows only "
                "after the student has read them; leave one of the two out"
            )
        return self

    @property
    def last_progress(self) -> float:
        """Share of the stage after which the rate is zero at the latest."""
        return 1.0 if isinstance(self.until, str) else self.until
