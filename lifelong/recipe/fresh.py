"""Configuration of a randomly initialised model, as a recipe describes it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from lifelong.errors import InputError
from lifelong.expand import new_config
from lifelong.recipe.recipe import Recipe

DECIDED_ELSEWHERE = {
    "family_name": "model.family",
    "model_type": "model.family",
    "vocab_size": "the tokenizer, or by model.vocab_size",
    "max_positions": "sequence_length",
    **{f"{name}_token_id": "the tokenizer" for name in ("bos", "eos", "pad")},
}


def fresh_config(recipe: Recipe, vocab_size: int, tokenizer: PreTrainedTokenizerBase | None = None) -> Any:
    """Configuration of a randomly initialised model.

    Raises:
        InputError: a key of `model.config` that is decided elsewhere.
        ExpansionError: sizes contradict each other, or transformers refuses the configuration.
    """
    for key in recipe.model.config:
        if key in DECIDED_ELSEWHERE or key in recipe.model.sizes():
            raise InputError(f"model.config.{key}: is decided by {DECIDED_ELSEWHERE.get(key, f'model.{key}')}")
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
