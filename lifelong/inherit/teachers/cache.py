"""`{cache: FOLDER}`: targets that `lifelong cache` wrote; no model runs.

Shape suffixes: N predicted tokens, K kept entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from lifelong.errors import InputError, LifelongError
from lifelong.inherit.settings import PREVIOUS, TeacherSection
from lifelong.inherit.teachers._teacher import Batch, Given, Teacher, TeacherInputs
from lifelong.schema import expand_variables

if TYPE_CHECKING:
    from lifelong.inherit.cache import TargetCache
    from lifelong.lm.loss import Target


class Plugin(TeacherSection):
    """A folder of `lifelong cache`; `of` is the model that it must have been written from."""

    place: ClassVar[int] = 1

    cache: str
    of: str | None = Field(default=None, description="says which model a `cache` is of")

    @field_validator("cache", "of")
    @classmethod
    def _variables(cls, value: str | None) -> str | None:
        return None if value is None else expand_variables(value)

    def caches(self) -> list[str]:
        """This one."""
        return [self.cache]

    def check(self, given: Given) -> Iterator[str]:
        """Check that the cache is complete and fits the run; the run's own tokenizer does not exist yet."""
        from lifelong.inherit.cache import TargetCache

        try:
            cache = TargetCache(Path(self.cache))
            CachedTeacher(
                cache,
                tokenizer=cache.settings.tokenizer,
                temperature=given.temperature,
                objective=given.objective,
                sequence_length=given.sequence_length,
            )
        except LifelongError as error:
            yield str(error)
            return
        if given.until == "surpassed":
            yield (
                "inherit.until: `surpassed` needs a model to compare the student with, a cache has none; give a share "
                "of the stage instead"
            )

    def build(self, inputs: TeacherInputs, domains: Sequence[str]) -> Teacher:
        """The cache, behind a map of ids where it was written by a teacher with a vocabulary of its own."""
        import torch

        from lifelong.inherit.cache import TargetCache
        from lifelong.inherit.mapped import MappedTeacher
        from lifelong.inherit.vocabularies import read_by_all
        from lifelong.lm.checkpoint import load_model, weights_fingerprint
        from lifelong.stream.tokenizers.load import tokenizer_fingerprint

        model = inputs.previous_fingerprint if self.of == PREVIOUS else None
        if self.of not in (None, PREVIOUS):
            model = weights_fingerprint(load_model(str(self.of), inputs.objective))
        cache, ids_V = TargetCache(Path(self.cache)), None
        fingerprint = tokenizer_fingerprint(inputs.tokenizer)
        if inputs.merged is not None:
            fingerprint = cache.settings.tokenizer
            ids_V = read_by_all(inputs.merged, domains, fingerprint, self.cache)
        teacher = CachedTeacher(
            cache,
            tokenizer=fingerprint,
            temperature=inputs.temperature,
            objective=inputs.objective,
            sequence_length=inputs.sequence_length,
            teacher=model,
        )
        if ids_V is None:
            return teacher
        return MappedTeacher(teacher, torch.from_numpy(ids_V), len(inputs.tokenizer), self.cache)


class CachedTeacher(Teacher):
    """Targets of a cache on disk; a block that it lacks is an error, and no reason to teach less in silence.

    Args:
        cache: the cache.
        tokenizer: fingerprint of the student's tokenizer.
        temperature: tau of the loss.
        objective: clm or mlm.
        sequence_length: of the run.
        teacher: fingerprint of the model that the cache must be of, where that is known.

    Raises:
        InputError: the cache was written for another tokenizer, temperature, objective, length or teacher.
    """

    def __init__(
        self,
        cache: TargetCache,
        *,
        tokenizer: str,
        temperature: float,
        objective: str,
        sequence_length: int,
        teacher: str | None = None,
    ) -> None:
        self.cache = cache
        self._check_model(tokenizer, teacher)
        there, folder = cache.settings, cache.folder
        for name, mine, unit in (
            ("temperature", temperature, "--temperature"),
            ("objective", objective, "--objective"),
            ("sequence_length", sequence_length, "--sequence-length"),
        ):
            if getattr(there, name) != mine:
                raise InputError(
                    f"{folder}: the cache was written with {name} {getattr(there, name)}, the run has {mine}; write it "
                    f"with `lifelong cache {unit} {mine}`"
                )

    def _check_model(self, tokenizer: str, teacher: str | None) -> None:
        there, folder = self.cache.settings, self.cache.folder
        if there.tokenizer != tokenizer:
            raise InputError(
                f"{folder}: the cache is of another tokenizer (fingerprint {there.tokenizer[:12]}, the student's is "
                f"{tokenizer[:12]}); write it with `lifelong cache --tokenizer` of the run"
            )
        if teacher is not None and there.teacher != teacher:
            raise InputError(
                f"{folder}: the cache is of another model (fingerprint {there.teacher[:12]}, the teacher named for it "
                f"has {teacher[:12]}); write it again from that model"
            )

    def targets(self, batch: Batch) -> Sequence[Target]:
        """The sparse targets of the batch's blocks."""
        from lifelong.inherit.cache import block_keys, cached_target

        ids_NK, probabilities_NK, _ = self.cache.read(block_keys(batch))
        return [cached_target(ids_NK, probabilities_NK, batch)]
