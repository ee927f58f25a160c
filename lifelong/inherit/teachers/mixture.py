"""`{mixture: [{teacher: ..., weight: ...}]}`: several teachers of the same text, mixed in probability space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from lifelong.inherit.settings import TeacherSection
from lifelong.inherit.teachers._teacher import Given, Teacher, TeacherInputs, unknown_domains
from lifelong.schema import Section

WHERE = "inherit.teacher.mixture.weight"


class WeightedTeacher(Section):
    """A part of a mixture; `weight` is a number for all domains, or one for each that is named."""

    teacher: TeacherSection
    weight: Annotated[float, Field(ge=0)] | dict[str, Annotated[float, Field(ge=0)]] = 1.0

    def weights(self, domains: Sequence[str]) -> Mapping[str, float]:
        """Weights of the teachers, by domain."""
        return self.weight if isinstance(self.weight, dict) else dict.fromkeys(domains, self.weight)


class Plugin(TeacherSection):
    """Teachers with weights."""

    place: ClassVar[int] = 3

    mixture: tuple[WeightedTeacher, ...]

    def inner(self) -> Sequence[TeacherSection]:
        """The teachers of its parts."""
        return [part.teacher for part in self.mixture]

    def routes(self, domains: Sequence[str]) -> list[tuple[str, list[str]]]:
        """Each part teaches what it has a weight for."""
        return [
            route
            for part in self.mixture
            for route in part.teacher.routes([name for name, weight in part.weights(domains).items() if weight])
        ]

    def check(self, given: Given) -> Iterator[str]:
        """Errors of the section: unknown domains, and those of the teachers."""
        if given.domains is not None:
            yield from map(str, self._unknown(given.domains))
        yield from super().check(given)

    def build(self, inputs: TeacherInputs, domains: Sequence[str]) -> Teacher | None:
        """The mixture of those that are there."""
        from lifelong.inherit.teachers._weighted import weighted_teacher

        for error in self._unknown(inputs.columns):
            raise error
        return weighted_teacher(
            [(part.teacher, part.weights(inputs.columns)) for part in self.mixture], inputs, domains
        )

    def _unknown(self, domains: Sequence[str]) -> Iterator[Exception]:
        for part in self.mixture:
            yield from unknown_domains(part.weight if isinstance(part.weight, dict) else (), domains, WHERE)
