"""Configurations of the models that a recipe names, including those that another recipe has yet to write.

A recipe may start from, or be taught by, a stage of an earlier run: `runs/ki-medium/stages/00-wikitext-103/model`.
Before that run is there, its recipe says what the model will be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lifelong.errors import InputError, LifelongError
from lifelong.expand import plan_expansion
from lifelong.ledger.folder import parse_stage_model
from lifelong.lm.checkpoint import load_config
from lifelong.recipe.files import known_recipes, load_recipe
from lifelong.recipe.fresh import fresh_config
from lifelong.recipe.recipe import Recipe
from lifelong.stream.tokenizers.check import merged_tokenizers
from lifelong.stream.tokenizers.load import load_tokenizer


@dataclass
class Shapes:
    """Looks configurations up, each once; `coming` says which recipe stood in for which run folder."""

    coming: dict[str, str] = field(default_factory=dict)
    _found: dict[tuple[str, str | None], Any] = field(default_factory=dict)

    def of(self, source: str, revision: str | None = None, above: Sequence[str] = ()) -> Any:
        """The configuration of a checkpoint, a run's stage that is still to come included.

        Raises:
            InputError: no such checkpoint, and no known recipe writes it.
        """
        key = (source, revision)
        if key not in self._found:
            self._found[key] = self._look_up(source, revision, above)
        return self._found[key]

    def _look_up(self, source: str, revision: str | None, above: Sequence[str]) -> Any:
        named = parse_stage_model(source)
        if named is None or Path(source).exists():
            return load_config(source, revision)
        run, index = named
        writer = next((name for name in known_recipes() if writes(name, run)), None)
        if writer is None or writer in above:
            raise InputError(
                f"checkpoint {source!r} does not exist yet, and no known recipe is named {run!r} to say what it "
                "will be; run it first, or name another checkpoint"
            )
        recipe = load_recipe(writer)
        if index >= len(recipe.stages):
            raise InputError(
                f"checkpoint {source!r} does not exist yet; recipe {writer} has {len(recipe.stages)} stages, none of "
                f"number {index}"
            )
        self.coming[source] = writer
        return self.stages(recipe, (*above, writer))[index]

    def first(self, recipe: Recipe, above: Sequence[str] = ()) -> Any:
        """The model before the first stage."""
        if recipe.model.checkpoint is not None:
            return self.of(recipe.model.checkpoint, recipe.model.revision, above)
        return fresh_config(recipe, vocab_size=recipe.tokenizer_size or _size_of(recipe) or 512)

    def stages(self, recipe: Recipe, above: Sequence[str] = ()) -> list[Any]:
        """The model of every stage.

        Raises:
            InputError: a growth that cannot be.
        """
        config, found = self.first(recipe, above), []
        for index, section in enumerate(recipe.stages):
            if section.expand is not None:
                try:
                    config = plan_expansion(config, **section.expand.options(), **section.expand.sizes()).target_config
                except LifelongError as error:
                    raise InputError(f"stages[{index}].expand: {error}") from None
            found.append(config)
        return found


def writes(recipe: str, run: str) -> bool:
    """Whether a recipe's run folder has this name by default."""
    try:
        return load_recipe(recipe).name == run
    except InputError:
        return False


def _size_of(recipe: Recipe) -> int | None:
    """Tokens of a tokenizer that is named and can be read; the sizes of a model may be planned without it."""
    if recipe.model.vocab_size is not None or recipe.tokenizer is None:
        return None
    try:
        if recipe.tokenizer.merge is not None:
            return len(merged_tokenizers(recipe.tokenizer, recipe.model.checkpoint, recipe.model.revision).tokenizer)
        return len(load_tokenizer(recipe.tokenizer.checkpoint)) if recipe.tokenizer.checkpoint is not None else None
    except InputError:
        return None
