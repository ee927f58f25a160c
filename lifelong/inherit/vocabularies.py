"""Teachers of several vocabularies: who may teach which domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lifelong.errors import InputError
from lifelong.inherit.settings import PREVIOUS, InheritSection, TeacherSection
from lifelong.stream.tokenizers.load import load_tokenizer, tokenizer_fingerprint
from lifelong.stream.tokenizers.merged import MergedTokenizers
from lifelong.stream.tokenizers.settings import TokenizerSection
from lifelong.stream.tokenizers.vocabulary import IntArray


def read_by_all(merged: MergedTokenizers, domains: Sequence[str], fingerprint: str, teacher: str) -> IntArray | None:
    """Ids of a teacher's tokens in the union; None where they are the union's own.

    Raises:
        InputError: a domain that it is to teach is read by another tokenizer.
    """
    found = {name: merged.read_by(name, fingerprint) for name in domains}
    if refused := [name for name, ids_V in found.items() if ids_V is None]:
        raise InputError(_cannot_teach(teacher, fingerprint, refused))
    maps = [ids_V for ids_V in found.values() if ids_V is not None]
    own = np.arange(len(merged.tokenizer))
    return None if all(np.array_equal(ids_V, own) for ids_V in maps) else maps[0]


def check_vocabularies(
    inherit: InheritSection,
    tokenizer: TokenizerSection | None,
    domains: Sequence[str],
    fingerprints: Mapping[str, str],
) -> Iterator[str]:
    """Check the vocabularies of the teachers, as far as that is possible without weights.

    Args:
        inherit: section of a recipe.
        tokenizer: section of the same recipe.
        domains: names of the stages' domains.
        fingerprints: of the tokenizers that are merged, by domain.
    """
    if tokenizer is None or not tokenizer.merge:
        yield from _check_one_vocabulary(inherit.teacher)
        return
    for model, taught in inherit.teacher.routes(list(dict.fromkeys(domains))):
        theirs = _fingerprint(model)
        refused = [name for name in taught if theirs is not None and theirs != fingerprints.get(name)]
        if theirs is not None and refused:
            yield _cannot_teach(model, theirs, refused)
    for cache in inherit.teacher.caches() if tokenizer.fixed else ():
        yield (
            f"inherit.teacher: the cache {cache} holds text as its teacher cuts it, with `tokenizer.fixed` the run "
            "cuts it more finely; name the model itself"
        )
    if inherit.until == "surpassed" and (inherit.teacher.caches() or set(inherit.teacher.models()) != {PREVIOUS}):
        yield (
            "inherit.until: `surpassed` compares student and teacher on the same ids, a teacher of another vocabulary "
            "has others; give a share of the stage instead"
        )


def _check_one_vocabulary(teacher: TeacherSection) -> Iterator[str]:
    """Teachers of several vocabularies can only be meant to be merged."""
    routes = teacher.routes(["DOMAIN"])
    found = {model: (theirs, domains) for model, domains in routes if (theirs := _fingerprint(model)) is not None}
    if len({theirs for theirs, _ in found.values()}) > 1:
        read = ", ".join(f"{model} {theirs[:12]}" for model, (theirs, _) in found.items())
        named = ", ".join(f"{name}: {model}" for model, (_, domains) in found.items() for name in domains)
        yield (
            f"inherit.teacher: the teachers have different tokenizers ({read}), a student reads one; merge their "
            f"vocabularies with `tokenizer: {{merge: {{{named}}}}}`"
        )


def _cannot_teach(teacher: str, fingerprint: str, domains: Sequence[str]) -> str:
    named = ", ".join(f"{domain}: {teacher}" for domain in domains)
    return (
        f"inherit.teacher: {teacher!r} (tokenizer {fingerprint[:12]}) cannot teach {', '.join(domains)}, which the run "
        "reads by another tokenizer; give each domain a teacher of its own (`inherit.teacher.by_domain`) and name its "
        f"checkpoint once more for what reads the domain: `tokenizer: {{merge: {{{named}}}}}`"
    )


def _fingerprint(model: str) -> str | None:
    try:
        return tokenizer_fingerprint(load_tokenizer(model))
    except InputError:
        return None  # weights without a tokenizer
