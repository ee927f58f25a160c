"""Teachers of several vocabularies in one run: `tokenizer.merge` of a recipe, and who may teach which domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lifelong.errors import InputError, UnknownNameError
from lifelong.inherit.settings import TeacherSection
from lifelong.recipe.recipe import Recipe
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.tokenizers.load import load_tokenizer, tokenizer_fingerprint
from lifelong.stream.tokenizers.merged import MergedTokenizers, merge_tokenizers
from lifelong.stream.tokenizers.settings import TokenizerSection
from lifelong.stream.tokenizers.vocabulary import IntArray

Fail = Callable[[str], None]


def merged_tokenizers(recipe: Recipe) -> MergedTokenizers:
    """The tokenizers of a recipe that merges vocabularies; ids of the model that it begins with stay.

    Raises:
        InputError: a tokenizer cannot be loaded, or its vocabulary cannot be merged.
    """
    section, checkpoint = recipe.tokenizer or TokenizerSection(merge={}), recipe.model.checkpoint
    assert section.merge, "a recipe that merges"
    first = load_tokenizer(checkpoint) if checkpoint is not None else None
    return merge_tokenizers(section.merge, first=first, fixed=bool(section.fixed))


def same_merge(recipe: Recipe, merged: MergedTokenizers | None) -> None:
    """Refuse a recipe that merges other vocabularies than the run was begun with.

    Raises:
        InputError: names both.
    """
    wanted = (recipe.tokenizer.merge if recipe.tokenizer is not None else None) or {}
    found = {name: domain.source for name, domain in merged.domains.items()} if merged is not None else {}
    if wanted != found:
        raise InputError(
            f"tokenizer.merge: the run was begun with {found or 'one tokenizer'}, the recipe says {wanted or 'none'}; "
            "every id in the run depends on it. Begin a new run, from this one's last model (`model.checkpoint`)"
        )


def read_by_all(merged: MergedTokenizers, domains: Sequence[str], fingerprint: str, teacher: str) -> IntArray | None:
    """Where the tokens of a teacher's tokenizer stand in the union; None where they are the union's own.

    Raises:
        InputError: a domain that it is to teach is read by another tokenizer.
    """
    found = {name: merged.read_by(name, fingerprint) for name in domains}
    if refused := [name for name, ids_V in found.items() if ids_V is None]:
        raise InputError(_cannot_teach(teacher, fingerprint, refused))
    maps = [ids_V for ids_V in found.values() if ids_V is not None]
    own = np.arange(len(merged.tokenizer))
    return None if all(np.array_equal(ids_V, own) for ids_V in maps) else maps[0]


def _cannot_teach(teacher: str, fingerprint: str, domains: Sequence[str]) -> str:
    named = ", ".join(f"{domain}: {teacher}" for domain in domains)
    return (
        f"inherit.teacher: {teacher!r} (tokenizer {fingerprint[:12]}) cannot teach {', '.join(domains)}, which the run "
        "reads by another tokenizer; give each domain a teacher of its own (`inherit.teacher.by_domain`) and name its "
        f"checkpoint once more for what reads the domain: `tokenizer: {{merge: {{{named}}}}}`"
    )


def check_merge(recipe: Recipe, fail: Fail) -> None:
    """What can be judged about vocabularies without weights, before a run begins.

    Args:
        recipe: to check.
        fail: told of every error.
    """
    try:
        names = [load_domain(stage.domain).name for stage in recipe.stages]
        joint = [[load_domain(card).name for card in stage.together_with] for stage in recipe.stages]
    except InputError:
        return  # reported on its own
    merge = (recipe.tokenizer.merge if recipe.tokenizer is not None else None) or {}
    fingerprints: dict[str, str] = {}
    for name, source in merge.items():
        if name not in (known := [*names, *(name for part in joint for name in part)]):
            fail(str(UnknownNameError("domain of this stream", name, known, "tokenizer.merge")))
        try:
            fingerprints[name] = tokenizer_fingerprint(load_tokenizer(source))
        except InputError as error:
            fail(f"tokenizer.merge.{name}: {error}")
    for name, others in zip(names, joint, strict=True):
        different = [other for other in others if fingerprints.get(other) != fingerprints.get(name)]
        if missing := [other for other in different if other not in names]:
            fail(
                f"stages: {', '.join(missing)} is trained on together with {name}, is read by another tokenizer, and "
                "has no stage of its own, by which it would be evaluated; give it one"
            )
        if different and recipe.facts is not None:
            fail(f"facts: are written for one tokenizer, {name} and {', '.join(different)} are read by several")
    if recipe.inherit is None or recipe.inherit.alpha == 0:
        return
    if merge:
        _check_readers(recipe, names, fingerprints, fail)
    else:
        _check_one_vocabulary(recipe, fail)


def _check_readers(recipe: Recipe, names: Sequence[str], fingerprints: dict[str, str], fail: Fail) -> None:
    """Every teacher against the tokenizers of the domains that it is to teach."""
    assert recipe.inherit is not None, "asked for only where there is a teacher"
    for model, domains in _routes(recipe.inherit.teacher, list(dict.fromkeys(names))):
        theirs = _fingerprint(model)
        refused = [name for name in domains if theirs is not None and theirs != fingerprints.get(name)]
        if theirs is not None and refused:
            fail(_cannot_teach(model, theirs, refused))
    if recipe.tokenizer is not None and recipe.tokenizer.fixed:
        for leaf in recipe.inherit.teacher.leaves():
            if leaf.cache is not None:
                fail(
                    f"inherit.teacher: the cache {leaf.cache} holds text as its teacher cuts it, with "
                    "`tokenizer.fixed` the run cuts it more finely; name the model itself"
                )
    if recipe.inherit.until == "surpassed" and any(
        leaf.model != "previous" for leaf in recipe.inherit.teacher.leaves()
    ):
        fail(
            "inherit.until: `surpassed` compares student and teacher on the same ids, a teacher of another vocabulary "
            "has others; give a share of the stage instead"
        )


def _check_one_vocabulary(recipe: Recipe, fail: Fail) -> None:
    """Teachers of several vocabularies can only be meant to be merged."""
    assert recipe.inherit is not None, "asked for only where there is a teacher"
    routes = _routes(recipe.inherit.teacher, ["DOMAIN"])
    found = {model: (theirs, domains) for model, domains in routes if (theirs := _fingerprint(model)) is not None}
    if len({theirs for theirs, _ in found.values()}) > 1:
        read = ", ".join(f"{model} {theirs[:12]}" for model, (theirs, _) in found.items())
        named = ", ".join(f"{name}: {model}" for model, (_, domains) in found.items() for name in domains)
        fail(
            f"inherit.teacher: the teachers have different tokenizers ({read}), a student reads one; merge their "
            f"vocabularies with `tokenizer: {{merge: {{{named}}}}}`"
        )


def _fingerprint(model: str) -> str | None:
    try:
        return tokenizer_fingerprint(load_tokenizer(model))
    except InputError:
        return None  # weights without a tokenizer


def _routes(section: TeacherSection, domains: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Checkpoints and the domains that they are to teach."""
    if section.model is not None:
        return [] if section.model == "previous" else [(section.model, list(domains))]
    found = [route for name, part in section.by_domain.items() for route in _routes(part, [name])]
    for part in section.mixture:
        weighed = part.weight if isinstance(part.weight, dict) else dict.fromkeys(domains, part.weight)
        found += _routes(part.teacher, [name for name, weight in weighed.items() if weight])
    return found
