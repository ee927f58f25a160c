"""Builds the teacher of a stage, its schedule and its masks from the `inherit:` section of a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lifelong.errors import InputError
from lifelong.inherit.cache import TargetCache
from lifelong.inherit.distiller import Distiller, TeacherEarlyStop
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.settings import InheritSection
from lifelong.inherit.teachers._teacher import Teacher, TeacherInputs
from lifelong.lm.flops import head_flops_per_token
from lifelong.lm.objective import objective_of
from lifelong.stream.collator import Collator


def stage_distiller(inherit: InheritSection, inputs: TeacherInputs) -> Distiller | None:
    """Teacher and schedule of a stage; None where nobody teaches.

    Raises:
        InputError: a teacher that does not fit the student, or a cache that does not fit the run.
    """
    if inherit.alpha == 0 or (teacher := inherit.teacher.build(inputs, inputs.columns)) is None:
        return None
    return Distiller(
        teacher,
        make_schedule(inherit.schedule, alpha=inherit.alpha, until=inherit.last_progress),
        on=inherit.on,
        temperature=inherit.temperature,
        bernoulli=inherit.bernoulli,
        seed=inputs.seed,
        surpassed=_surpassed(teacher, inherit.looks, inputs) if inherit.until == "surpassed" else None,
        objective=inputs.objective,
        student_head_flops=head_flops_per_token(inputs.student),
    )


def _surpassed(teacher: Teacher, looks: int, inputs: TeacherInputs) -> TeacherEarlyStop:
    """Looks at the student on held-out text of its own domain, and how good the teacher is there."""
    domain, nats = inputs.domain, inputs.heldout_nats
    model = teacher.model_for(inputs.columns.index(domain))
    if model is None:
        raise InputError(
            f"inherit.until: `surpassed` compares the student with the model that teaches {domain!r}; that is no "
            "single model here (a cache or a mixture). Give a share of the stage instead"
        )
    every = max(1, inputs.num_steps // looks)
    return TeacherEarlyStop(nats(model, domain), lambda: nats(inputs.student, domain), every)


def stage_collator(collator: Collator, inherit: InheritSection | None) -> Collator:
    """The collator of a stage; with a cache of masked targets it draws the masks that the cache knows.

    Raises:
        InputError: the caches know different masks.
    """
    caches = inherit.teacher.caches() if inherit is not None and inherit.alpha else []
    if not objective_of(collator.objective).masks_tokens or not caches:
        return collator
    settings = [TargetCache(Path(cache)).settings for cache in caches]
    masks = {(there.mask_seed, there.mask_patterns) for there in settings}
    if len(masks) > 1:
        raise InputError(f"inherit.teacher: the caches {', '.join(caches)} were written with different masks: {masks}")
    mask_seed, mask_patterns = masks.pop()
    return replace(collator, seed=mask_seed, mask_patterns=mask_patterns)
