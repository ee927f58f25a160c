"""Configuration of a randomly initialised model, as a recipe describes it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from lifelong.expand import new_config
from lifelong.recipe.recipe import Recipe


def fresh_config(recipe: Recipe, vocab_size: int, tokenizer: PreTrainedTokenizerBase | None = None) -> Any:
    """Configuration of a randomly initialised model."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    assert recipe.model.family is not None, "a recipe names a checkpoint or a family"
    return new_config(
        recipe.model.family,
        vocab_size=recipe.model.vocab_size or vocab_size,
        max_positions=recipe.sequence_length,
        **ids,
        **{axis: size for axis, size in recipe.model.sizes().items() if axis != "vocab_size"},
        **recipe.model.config,
    )
