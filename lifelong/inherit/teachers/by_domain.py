"""`{by_domain: {NAME: teacher}}`: each domain has a teacher of its own; domains that are not named are not taught."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from lifelong.inherit.settings import TeacherSection
from lifelong.inherit.teachers._teacher import Given, Teacher, TeacherInputs, unknown_domains

WHERE = "inherit.teacher.by_domain"


class Plugin(TeacherSection):
    """A teacher for each domain that is named."""

    place: ClassVar[int] = 2

    by_domain: dict[str, TeacherSection]

    def inner(self) -> Sequence[TeacherSection]:
        """The teachers of the domains."""
        return list(self.by_domain.values())

    def routes(self, domains: Sequence[str]) -> list[tuple[str, list[str]]]:
        """Each teaches its own domain."""
        del domains
        return [route for name, teacher in self.by_domain.items() for route in teacher.routes([name])]

    def flops_per_token(self, forward: Mapping[str, float]) -> float:
        """One of them runs for a token: their mean."""
        running = [teacher for teacher in self.inner() if any(name in forward for name in teacher.models())]
        return sum(teacher.flops_per_token(forward) for teacher in running) / max(1, len(running))

    def check(self, given: Given) -> Iterator[str]:
        """Errors of the section: unknown domains, and those of the teachers."""
        if given.domains is not None:
            yield from map(str, unknown_domains(self.by_domain, given.domains, WHERE))
        yield from super().check(given)

    def build(self, inputs: TeacherInputs, domains: Sequence[str]) -> Teacher | None:
        """A mixture whose weights are 0 and 1."""
        from lifelong.inherit.teachers._weighted import weighted_teacher

        for error in unknown_domains(self.by_domain, inputs.columns, WHERE):
            raise error
        parts = [(teacher, {name: 1.0}) for name, teacher in self.by_domain.items()]
        return weighted_teacher(parts, inputs, domains)
