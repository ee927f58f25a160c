"""Several vocabularies in one run: `tokenizer.merge` of a recipe."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from lifelong.errors import InputError, UnknownNameError
from lifelong.stream.tokenizers.load import load_tokenizer, tokenizer_fingerprint
from lifelong.stream.tokenizers.merged import MergedTokenizers, merge_tokenizers
from lifelong.stream.tokenizers.settings import TokenizerSection


def merged_tokenizers(
    section: TokenizerSection, checkpoint: str | None, revision: str | None = None
) -> MergedTokenizers:
    """The tokenizers of a recipe that merges vocabularies.

    Args:
        section: names what is merged.
        checkpoint: the model that a run begins with, whose ids stay; None for a randomly initialised model.
        revision: of the checkpoint on the hub.

    Raises:
        InputError: a tokenizer cannot be loaded, or its vocabulary cannot be merged.
    """
    assert section.merge, "a recipe that merges"
    first = load_tokenizer(checkpoint, revision=revision) if checkpoint is not None else None
    return merge_tokenizers(section.merge, first=first, fixed=bool(section.fixed))


def same_merge(section: TokenizerSection | None, merged: MergedTokenizers | None) -> None:
    """Refuse a recipe that merges other vocabularies than the run was begun with.

    Raises:
        InputError: names both.
    """
    wanted = (section.merge if section is not None else None) or {}
    found = {name: domain.source for name, domain in merged.domains.items()} if merged is not None else {}
    if wanted != found:
        raise InputError(
            f"tokenizer.merge: the run was begun with {found or 'one tokenizer'}, the recipe says {wanted or 'none'}; "
            "every id in the run depends on it. Begin a new run, from this one's last model (`model.checkpoint`)"
        )


def check_merge(
    section: TokenizerSection | None,
    names: Sequence[str],
    joint: Sequence[Sequence[str]],
    *,
    facts: bool = False,
) -> Generator[str, None, dict[str, str]]:
    """Check the vocabularies as far as possible without weights, before a run starts.

    Args:
        section: of the recipe.
        names: the domain of every stage.
        joint: the domains that every stage is trained on together with.
        facts: whether facts are injected.

    Yields:
        A line for every error.

    Returns:
        Fingerprints of the tokenizers that are merged, by domain.
    """
    merge = (section.merge if section is not None else None) or {}
    fingerprints: dict[str, str] = {}
    for name, source in merge.items():
        if name not in (known := [*names, *(name for part in joint for name in part)]):
            yield str(UnknownNameError("domain of this stream", name, known, "tokenizer.merge"))
        try:
            fingerprints[name] = tokenizer_fingerprint(load_tokenizer(source))
        except InputError as error:
            yield f"tokenizer.merge.{name}: {error}"
    for name, others in zip(names, joint, strict=True):
        different = [other for other in others if fingerprints.get(other) != fingerprints.get(name)]
        if missing := [other for other in different if other not in names]:
            yield (
                f"stages: {', '.join(missing)} is trained on together with {name}, is read by another tokenizer, and "
                "has no stage of its own, by which it would be evaluated; give it one"
            )
        if different and facts:
            yield f"facts: are written for one tokenizer, {name} and {', '.join(different)} are read by several"
    return fingerprints
