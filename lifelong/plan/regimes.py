"""Advice on regimes: repeated text, growth at the wrong time, temperatures and optimizers, each with its figure.

Figures are of three seeds (docs/results.md) where no other place and number is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong.plan.text import CorpusStats
from lifelong.recipe.recipe import Recipe

MOST_PASSES = 3.0
TOKENS_PER_PARAMETER = 20.0
TOO_EARLY, TOO_LATE = 0.5, 5.0
"""Of `TOKENS_PER_PARAMETER`: below and far above."""
SAFE_FACTOR = 2.55
CROSSING, CROSSING_OF_BASES = 4.0, 8.0
"""Tokens per parameter of the grown model after the growth."""
SATURATED = 1_000.0
SEEN_TOKENS = (
    (r"qwen3", 36e12), (r"qwen2\.5", 18e12), (r"qwen2", 7e12), (r"llama-?3\.2", 9e12), (r"llama-?3", 15e12),
    (r"smollm3", 11e12), (r"smollm2-135m", 2e12), (r"smollm2-360m", 4e12), (r"smollm2", 11e12), (r"gemma-3-270m", 6e12),
    (r"gemma-3", 2e12), (r"gemma-2-2b", 2e12), (r"gemma-2", 8e12), (r"olmo-2", 4e12), (r"tinyllama", 3e12),
    (r"pythia", 3e11),
)  # fmt: skip
"""Tokens of pre-training as the model cards state them, by a pattern of the checkpoint's name; the first that fits."""


def regime_advice(
    recipe: Recipe, stages: Sequence[Any], base_parameters: int, texts: Mapping[str, CorpusStats]
) -> Iterator[str]:
    """One line for everything that a measured regime speaks against.

    Args:
        recipe: to judge.
        stages: as planned.
        base_parameters: of the model before the first stage.
        texts: what was found about the text of each card; empty where none was read.
    """
    yield from _repetition(recipe, stages, texts)
    yield from _growth(recipe, stages, base_parameters)
    if recipe.inherit is not None and recipe.inherit.alpha and recipe.inherit.temperature > 1:
        yield (
            f"inherit.temperature {recipe.inherit.temperature:g}: at the same alpha 1 learns more and 2, the published "
            "value (arXiv 2105.13880), keeps more: .057 nats of new text against .154 of the base's without old text, "
            "three seeds (docs/results.md, Settings); a small teacher of the domain saved 33 to 36 % of the steps at 1 "
            "and, on one seed, 16 % at 2 (docs/log.md, 2026-11-21)"
        )
    sections = [recipe.train, *(stage.train for stage in recipe.stages)]
    if recipe.model.checkpoint is not None and any("muon" in str(part.get("optim")).lower() for part in sections):
        yield (
            "train.optim: Muon on a base that AdamW has trained loses most of its advantage; optimizers of "
            "pre-training and of what follows should match (arXiv 2502.16982, section 3.5): AdamW, unless the base is "
            "known to be of Muon"
        )


def _repetition(recipe: Recipe, stages: Sequence[Any], texts: Mapping[str, CorpusStats]) -> Iterator[str]:
    if recipe.inherit is not None and recipe.inherit.alpha:
        return
    read: dict[str, float] = {}
    for section, stage in zip(recipe.stages, stages, strict=True):
        for card, tokens in section.tokens_by_card().items() if section.shares or not section.together_with else ():
            stats = texts.get(card)
            if stats is None or not stats.tokens:
                continue
            read[card] = read.get(card, 0.0) + tokens * (1 - stage.replay_share)
            if (passes := read[card] / stats.tokens) <= MOST_PASSES:
                continue
            yield (
                f"stage {stage.index}: reads the {stats.tokens:,.0f} tokens of {Path(card).stem} {passes:.1f} times "
                "without a teacher; in docs/results.md plain text is best at four passes (2.686 nats of 100k tokens, "
                "2.729 at eight), a teacher at 0.3 as good at eight and .46 nats less forgetful. Fewer tokens, or "
                "inherit: {teacher: previous, on: all, alpha: 0.3, schedule: constant}; train.weight_decay at 10 times "
                "the usual (for arXiv 2509.14786 it is 30) gave .015 more of the new text and forgot .33 more"
            )


def _growth(recipe: Recipe, stages: Sequence[Any], base_parameters: int) -> Iterator[str]:
    source = recipe.model.checkpoint
    seen = None if source is None else seen_tokens(source)
    for index, (section, stage) in enumerate(zip(recipe.stages, stages, strict=True)):
        before = base_parameters if index == 0 else stages[index - 1].parameters
        if section.expand is None or stage.parameters <= before:
            continue
        grows, place = stage.parameters / before, f"stage {stage.index}: grows"
        if grows > SAFE_FACTOR:
            yield (
                f"{place} {grows:.1f}-fold at once; a factor of 2 does better than 4 and 8 (arXiv 2605.13405), and 2.5 "
                "twice than 6.3 once, by .04 to .13 nats (docs/results.md, Unknown horizon): grow in two stages"
            )
        trained = sum(done.tokens for done in stages[:index])
        if source is None:
            yield from _moment(place, trained / before)
        elif seen is not None and seen / base_parameters > SATURATED and section.expand.train != "new":
            yield (
                f"{place} a base that has seen some {seen / base_parameters:,.0f} tokens a parameter: such growth "
                "lowers no loss (arXiv 2510.06548); what it gives is room, where the old weights are held: expand: "
                "{train: new} (arXiv 2603.08647)"
            )
        after = sum(later.tokens for later in stages[index:]) / stage.parameters
        if after < (CROSSING if source is None else CROSSING_OF_BASES):
            figure = (
                f"grown 2.5-fold it was .014 nats behind the small one {CROSSING:g} tokens a parameter after the "
                "growth and .05 ahead at 8 (docs/results.md, Unknown horizon)"
                if source is None
                else "a converged model grown for 8 tokens a parameter ended 0.11 nats above the one that was not, on "
                "one seed (docs/log.md, 2026-11-27)"
            )
            yield (
                f"{place}, and the run ends {after:.2g} tokens a parameter later, before the larger model can pay: "
                f"{figure}"
            )


def _moment(place: str, ratio: float) -> Iterator[str]:
    if ratio and ratio < TOO_EARLY * TOKENS_PER_PARAMETER:
        yield (
            f"{place} after {ratio:.2g} tokens a parameter; what a growth saves is largest where the small model has "
            f"seen some {TOKENS_PER_PARAMETER:g} (arXiv 2605.13405)"
        )
    elif ratio > TOO_LATE * TOKENS_PER_PARAMETER:
        yield (
            f"{place} after {ratio:,.0f} tokens a parameter, far above the {TOKENS_PER_PARAMETER:g} up to which a "
            "growth saves anything (arXiv 2605.13405)"
        )


def seen_tokens(checkpoint: str) -> float | None:
    """Tokens of pre-training of a known checkpoint; None of another."""
    name = checkpoint.lower()
    return next((tokens for pattern, tokens in SEEN_TOKENS if re.search(pattern, name)), None)
