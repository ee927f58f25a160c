"""Causal or masked language modelling: what a model predicts, and all that follows from it.

Recipes, caches and public functions name an objective by `clm` or `mlm`; `objective_of` turns the name into what the
code asks. Free of torch: shapes are sliced, never computed with.

Shape suffixes: B sequences, T tokens, `...` anything behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from lifelong.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

MASK_RATE = 0.15
"""Share of the positions that a masked model predicts (Devlin et al. 2019, BERT, section 3.1)."""


class CausalLM:
    """Every token is predicted from those before it.

    Attributes:
        name: in recipes, caches and messages.
        is_causal: a position attends to itself and earlier ones only; the last one has read the whole text.
        masks_tokens: what is predicted is hidden by a mask token.
        attended_share: of a sequence, what a token attends to on average.
        forward_arguments: what a forward pass in training is given beside its batch.
    """

    name: ClassVar[Literal["clm", "mlm"]] = "clm"
    is_causal: ClassVar[bool] = True
    masks_tokens: ClassVar[bool] = False
    attended_share: ClassVar[float] = 0.5
    forward_arguments: ClassVar[Mapping[str, Any]] = {"use_cache": False}

    @property
    def auto_class(self) -> Any:
        """The auto class of transformers that builds such a model."""
        import transformers

        return transformers.AutoModelForCausalLM

    @property
    def model_classes(self) -> Any:
        """Class of a configuration -> class of the model with this head."""
        import transformers

        return transformers.MODEL_FOR_CAUSAL_LM_MAPPING

    def predicting(self, values_BT: Tensor) -> Tensor:
        """Values `[B, T, ...]` at the positions whose output predicts something, `[B, T - 1, ...]`."""
        return values_BT[:, :-1]

    def predicted(self, labels_BT: Tensor) -> Tensor:
        """Labels `[B, T]`, not shifted, of what these positions predict, `[B, T - 1]`."""
        return labels_BT[:, 1:]

    def num_predicted(self, rows: int, length: int) -> int:
        """Predicted tokens of full rows of `length` tokens."""
        return rows * (length - 1)

    def mask_id(self, tokenizer: Any) -> int | None:
        """No token hides anything, whatever the tokenizer has."""
        del tokenizer
        return None


class MaskedLM:
    """Hidden tokens are predicted from all the others; attributes and methods as those of `CausalLM`."""

    name: ClassVar[Literal["clm", "mlm"]] = "mlm"
    is_causal: ClassVar[bool] = False
    masks_tokens: ClassVar[bool] = True
    attended_share: ClassVar[float] = 1.0
    forward_arguments: ClassVar[Mapping[str, Any]] = {}

    @property
    def auto_class(self) -> Any:
        """The auto class of transformers that builds such a model."""
        import transformers

        return transformers.AutoModelForMaskedLM

    @property
    def model_classes(self) -> Any:
        """Class of a configuration -> class of the model with this head."""
        import transformers

        return transformers.MODEL_FOR_MASKED_LM_MAPPING

    def predicting(self, values_BT: Tensor) -> Tensor:
        """Values `[B, T, ...]` at all positions: each may predict its own token."""
        return values_BT

    def predicted(self, labels_BT: Tensor) -> Tensor:
        """Labels `[B, T]` as they are."""
        return labels_BT

    def num_predicted(self, rows: int, length: int) -> int:
        """Predicted tokens of full rows of `length` tokens, on average."""
        return int(rows * length * MASK_RATE)

    def mask_id(self, tokenizer: Any) -> int | None:
        """The token that hides what is predicted; None where the tokenizer has none."""
        found: int | None = tokenizer.mask_token_id
        return found


Objective: TypeAlias = CausalLM | MaskedLM

OBJECTIVES: Mapping[str, Objective] = {kind.name: kind for kind in (CausalLM(), MaskedLM())}


def objective_of(name: str) -> Objective:
    """The objective that a recipe, a cache or a caller names.

    Raises:
        InputError: no such objective.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective: {name!r} is not {' or '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def pad_id(tokenizer: Any) -> int:
    """The padding token, or any other where there is none: padding is never attended to nor predicted."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
