"""From the `inherit:` section of a recipe to the teacher of a stage.

What can be judged without weights is checked before a run begins (`check_teachers`), the rest when the teacher is
made (`stage_inheritor`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lifelong.errors import InputError, LifelongError, UnknownNameError
from lifelong.inherit.cache import TargetCache
from lifelong.inherit.inheritor import Inheritor, Surpassed
from lifelong.inherit.mapped import MappedTeacher
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.settings import InheritSection, TeacherSection
from lifelong.inherit.teachers import CachedTeacher, MixtureTeacher, OnlineTeacher, Teacher, weights_by_domain
from lifelong.lm.checkpoint import load_config, load_model, weights_fingerprint
from lifelong.lm.flops import forward_flops_per_token
from lifelong.lm.objective import objective_of
from lifelong.pipeline.run import RunContext
from lifelong.recipe.recipe import Recipe
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.collator import Collator
from lifelong.stream.tokenizers.check import read_by_all
from lifelong.stream.tokenizers.load import load_tokenizer, tokenizer_fingerprint
from lifelong.stream.tokenizers.vocabulary import IntArray

PREVIOUS = "previous"


@dataclass(frozen=True)
class Lesson:
    """What the teacher of a stage depends on.

    Args:
        run: the run.
        domain: name of the stage's domain.
        student: the model of the stage, at its size.
        previous: where the model before lies; None where there is none that has learned anything.
        previous_fingerprint: of its weights.
        seed: of the stage.
        num_steps: optimizer steps of the stage.
    """

    run: RunContext
    domain: str
    student: PreTrainedModel
    previous: Path | str | None
    previous_fingerprint: str | None
    seed: int
    num_steps: int

    @property
    def inherit(self) -> InheritSection:
        """The section of the recipe."""
        assert self.run.recipe.inherit is not None, "asked for only where there is one"
        return self.run.recipe.inherit


def stage_inheritor(lesson: Lesson) -> Inheritor | None:
    """Teacher and schedule of a stage; None where nobody teaches.

    Raises:
        InputError: a teacher that does not fit the student, or a cache that does not fit the run.
    """
    inherit = lesson.inherit
    if inherit.alpha == 0:
        return None
    teacher = make_teacher(inherit.teacher, lesson, lesson.run.columns)
    if teacher is None:
        return None
    surpassed = _surpassed(teacher, lesson) if inherit.until == "surpassed" else None
    schedule = make_schedule(inherit.schedule, alpha=inherit.alpha, until=inherit.last_progress)
    return Inheritor(
        teacher,
        schedule,
        on=inherit.on,
        temperature=inherit.temperature,
        bernoulli=inherit.bernoulli,
        seed=lesson.seed,
        surpassed=surpassed,
    )


def make_teacher(section: TeacherSection, lesson: Lesson, domains: Sequence[str]) -> Teacher | None:
    """The teacher of a section for some domains; None for a previous model that does not exist.

    Raises:
        InputError: see `stage_inheritor`.
    """
    if section.model is not None:
        return _online(section.model, lesson, domains)
    if section.cache is not None:
        return _cached(section, lesson, domains)
    columns = lesson.run.columns
    if section.by_domain:
        _known_domains(section.by_domain, columns, "inherit.teacher.by_domain")
        parts = [(part, {name: 1.0}) for name, part in section.by_domain.items()]
    else:
        parts = [(part.teacher, _weights(part.weight, columns)) for part in section.mixture]
    teachers, table = [], []
    for part, weights in parts:
        if (teacher := make_teacher(part, lesson, [name for name in domains if weights.get(name)])) is not None:
            teachers.append(teacher)
            table.append([weights.get(name, 0.0) for name in columns])
    if not teachers:
        return None
    return MixtureTeacher(teachers, weights_by_domain(torch.tensor(table).T), lesson.run.recipe.objective)


def _weights(weight: float | dict[str, float], columns: Sequence[str]) -> dict[str, float]:
    if not isinstance(weight, dict):
        return dict.fromkeys(columns, weight)
    _known_domains(weight, columns, "inherit.teacher.mixture.weight")
    return weight


def _known_domains(named: Any, columns: Sequence[str], where: str) -> None:
    for name in named:
        if name not in columns:
            raise UnknownNameError("domain of this stream", name, columns, where)


def _online(source: str, lesson: Lesson, domains: Sequence[str]) -> Teacher | None:
    recipe = lesson.run.recipe
    if source == PREVIOUS:
        if lesson.previous is None:
            return None
        model, ids_V = load_model(lesson.previous, recipe.objective), None
    else:
        model, ids_V = load_model(source, recipe.objective), _online_map(source, lesson, domains)
    teacher = OnlineTeacher(
        model,
        recipe.objective,
        vocab_size=_real_tokens(model.config.vocab_size, source, lesson) if ids_V is None else len(ids_V),
        flops_per_token=forward_flops_per_token(model, recipe.sequence_length, recipe.objective),
    )
    if ids_V is None:
        return teacher
    if model.config.vocab_size < len(ids_V):
        raise InputError(
            f"inherit.teacher: {source!r} has a vocabulary of {model.config.vocab_size} tokens, the tokenizer that "
            f"`tokenizer.merge` names for it has {len(ids_V)}"
        )
    return MappedTeacher(teacher, torch.from_numpy(ids_V), len(lesson.run.tokenizer), source)


def _online_map(source: str, lesson: Lesson, domains: Sequence[str]) -> IntArray | None:
    """Where the tokens of a checkpoint stand in the union; None where it reads the run's ids."""
    if lesson.run.merged is None:
        _same_tokenizer(source, lesson)
        return None
    own = lesson.run.merged.domains.get(domains[0]) if domains else None
    try:
        fingerprint = tokenizer_fingerprint(load_tokenizer(source))
    except InputError:
        if own is None:
            return None
        fingerprint = own.fingerprint  # weights without a tokenizer: believed, where its width fits
    return read_by_all(lesson.run.merged, domains, fingerprint, source)


def _same_tokenizer(source: str, lesson: Lesson) -> None:
    """Equal width is no proof of an equal vocabulary: where the teacher brings a tokenizer, it must be the run's."""
    try:
        theirs = tokenizer_fingerprint(load_tokenizer(source))
    except InputError:
        return  # weights without a tokenizer: the width is all that can be compared
    mine = tokenizer_fingerprint(lesson.run.tokenizer)
    if theirs != mine:
        raise InputError(
            f"inherit.teacher: {source!r} has another tokenizer than the run (fingerprint {theirs[:12]}, the run's is "
            f"{mine[:12]}); a teacher must read the same tokens: name `tokenizer: {{checkpoint: {source}}}` in the "
            "recipe, take a teacher that was trained with the run's tokenizer, or merge the vocabularies of several "
            f"teachers: `tokenizer: {{merge: {{{lesson.domain}: {source}, ...}}}}`"
        )


def _real_tokens(teacher_rows: int, source: str, lesson: Lesson) -> int | None:
    """Tokens that the teacher knows, where its output embedding has rows of padding or fewer than the student's.

    Raises:
        InputError: the teacher lacks tokens of the run's tokenizer.
    """
    student_rows, tokens = lesson.student.config.vocab_size, len(lesson.run.tokenizer)
    if teacher_rows < min(tokens, student_rows) and source != PREVIOUS:
        raise InputError(
            f"inherit.teacher: {source!r} has a vocabulary of {teacher_rows} tokens, the student of {student_rows}; a "
            "teacher must use the student's tokenizer: take another one, or grow its vocabulary first (lifelong "
            f"expand --vocab-size {student_rows})"
        )
    real = min(teacher_rows, student_rows, tokens)
    return real if real < max(teacher_rows, student_rows) else None


def _cached(section: TeacherSection, lesson: Lesson, domains: Sequence[str]) -> Teacher:
    recipe, merged = lesson.run.recipe, lesson.run.merged
    assert section.cache is not None, "a section of a cache"
    teacher = None
    if section.of == PREVIOUS:
        teacher = lesson.previous_fingerprint
    elif section.of is not None:
        teacher = weights_fingerprint(load_model(section.of, recipe.objective))
    cache, ids_V = TargetCache(Path(section.cache)), None
    fingerprint = tokenizer_fingerprint(lesson.run.tokenizer)
    if merged is not None:
        fingerprint = cache.settings.tokenizer
        ids_V = read_by_all(merged, domains, fingerprint, section.cache)
    cached = CachedTeacher(
        cache,
        tokenizer=fingerprint,
        temperature=lesson.inherit.temperature,
        objective=recipe.objective,
        sequence_length=recipe.sequence_length,
        teacher=teacher,
    )
    if ids_V is None:
        return cached
    return MappedTeacher(cached, torch.from_numpy(ids_V), len(lesson.run.tokenizer), section.cache)


def _surpassed(teacher: Teacher, lesson: Lesson) -> Surpassed:
    """Looks at the student on held-out text of its own domain, and how good the teacher is there."""
    run, inherit = lesson.run, lesson.inherit
    heldout = run.heldouts[run.columns.index(lesson.domain)]

    def nats(model: PreTrainedModel) -> float:
        return run.evaluate_one(model, heldout, run.recipe.evaluate.probe_tokens).nats_per_token

    model = _model_for(teacher, lesson)
    return Surpassed(nats(model), lambda: nats(lesson.student), max(1, lesson.num_steps // inherit.looks))


def _model_for(teacher: Teacher, lesson: Lesson) -> PreTrainedModel:
    """The one model that teaches the stage's own domain."""
    if isinstance(teacher, MixtureTeacher):
        column = torch.tensor([lesson.run.columns.index(lesson.domain)])
        weights = teacher.weigh({"domain_ids": column})[0]
        active = [part for part, weight in zip(teacher.teachers, weights, strict=True) if weight > 0]
        if len(active) == 1:
            return _model_for(active[0], lesson)
    if isinstance(teacher, OnlineTeacher):
        return teacher.model
    raise InputError(
        f"inherit.until: `surpassed` compares the student with the model that teaches {lesson.domain!r}; that is no "
        "single model here (a cache or a mixture). Give a share of the stage instead"
    )


def stage_collator(run: RunContext, seed: int) -> Collator:
    """The collator of a stage; with a cache of masked targets it draws the masks that the cache knows."""
    inherit = run.recipe.inherit
    caches = [leaf.cache for leaf in inherit.teacher.leaves() if leaf.cache] if inherit and inherit.alpha else []
    collator = run.collator(seed)
    if not objective_of(run.recipe.objective).masks_tokens or not caches:
        return collator
    settings = [TargetCache(Path(cache)).settings for cache in caches]
    masks = {(there.mask_seed, there.mask_patterns) for there in settings}
    if len(masks) > 1:
        raise InputError(f"inherit.teacher: the caches {', '.join(caches)} were written with different masks: {masks}")
    mask_seed, mask_patterns = masks.pop()
    return replace(collator, seed=mask_seed, mask_patterns=mask_patterns)


def check_teachers(recipe: Recipe, fail: Callable[[str], None]) -> None:
    """What can be judged about the teachers without weights.

    Args:
        recipe: to check.
        fail: told of every error.
    """
    inherit = recipe.inherit
    if inherit is None or inherit.alpha == 0:
        return
    names = _stream_names(recipe)
    for where, named in _named_domains(inherit.teacher):
        for name in named:
            if names is not None and name not in names:
                fail(str(UnknownNameError("domain of this stream", name, names, where)))
    for leaf in inherit.teacher.leaves():
        if (fault := _fault_of(leaf, recipe, inherit)) is not None:
            fail(fault)


def _fault_of(leaf: TeacherSection, recipe: Recipe, inherit: InheritSection) -> str | None:
    try:
        if leaf.model is not None and leaf.model != PREVIOUS:
            load_config(leaf.model)
        if leaf.cache is None:
            return None
        cache = TargetCache(Path(leaf.cache))
        CachedTeacher(
            cache,
            tokenizer=cache.settings.tokenizer,  # the run's own is not there yet
            temperature=inherit.temperature,
            objective=recipe.objective,
            sequence_length=recipe.sequence_length,
        )
    except LifelongError as error:
        return str(error)
    if inherit.until != "surpassed":
        return None
    return (
        "inherit.until: `surpassed` needs a model to compare the student with, a cache has none; give a share of the "
        "stage instead"
    )


def _stream_names(recipe: Recipe) -> list[str] | None:
    try:
        return [load_domain(stage.domain).name for stage in recipe.stages]
    except InputError:
        return None  # reported on its own, or a card that is gone from a stage that is done


def _named_domains(section: TeacherSection) -> list[tuple[str, Sequence[str]]]:
    named: list[tuple[str, Sequence[str]]] = [("inherit.teacher.by_domain", list(section.by_domain))]
    named += [
        ("inherit.teacher.mixture.weight", list(part.weight))
        for part in section.mixture
        if isinstance(part.weight, dict)
    ]
    inner = [*section.by_domain.values(), *(part.teacher for part in section.mixture)]
    return named + [entry for teacher in inner for entry in _named_domains(teacher)]
