"""What a continual-learning method can do, in five hooks; a method is a dataclass whose fields are its settings.

A method file in `lifelong/methods/` defines one subclass named `Plugin`. With strength 0 a method is
never called, so that it equals sequential training bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass
class StageContext:
    """What a method may know about the stage.

    `stage_index` counts from 0; `model` has its size for this stage already.
    """

    stage_index: int
    domain: str
    model: PreTrainedModel
    seed: int


@dataclass
class Method:
    """Base of all methods: every hook may be left out."""

    strength: float = 1.0

    def begin_stage(self, context: StageContext) -> None:
        """The model has its size and its starting weights; nothing is trained yet."""

    def mix(self, weights: Mapping[str, float], context: StageContext) -> Mapping[str, float]:
        """Weights by which replay draws from the earlier domains; return them changed or as they are."""
        del context
        return weights

    def loss_term(self, model: PreTrainedModel) -> Tensor | None:
        """A term added to the loss of the whole optimizer step, or None."""
        del model
        return None

    def edit_gradients(self, model: PreTrainedModel) -> None:
        """Gradients of the whole step are there, clipped; the optimizer comes next."""

    def end_stage(self, context: StageContext) -> None:
        """The stage is trained and not yet committed."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a later stage or a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""


def make_methods(sections: list[tuple[str, Mapping[str, Any]]]) -> list[Method]:
    """The methods of a recipe, in order; those with strength 0 are left out.

    Args:
        sections: name of the method and its settings.

    Raises:
        InputError: unknown name or setting.
    """
    import dataclasses

    from lifelong.errors import InputError, did_you_mean
    from lifelong.plugins import load_plugin

    methods: list[Method] = []
    for name, settings in sections:
        plugin = load_plugin("lifelong.methods", name, kind="method", where="methods").Plugin
        known = [item.name for item in dataclasses.fields(plugin) if item.init]
        for key in settings:
            if key not in known:
                raise InputError(f"methods.{name}.{key}: is no setting of this method{did_you_mean(key, known)}")
        method = plugin(**settings)
        if method.strength != 0:
            methods.append(method)
    return methods
