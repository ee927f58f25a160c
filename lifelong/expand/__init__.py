"""Growing a model without changing its function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lifelong.exports import lazy_exports

if TYPE_CHECKING:
    from lifelong.expand.apply import expand_model, expansion_map, grow
    from lifelong.expand.attached import (
        grow_adapter,
        grow_adapter_folder,
        grow_optimizer_state,
        move_optimizer,
        parameter_groups,
        train_only_new,
    )
    from lifelong.expand.checkpoint import expand_checkpoint, explain_expansion
    from lifelong.expand.family import family_of
    from lifelong.expand.float64 import true_float64
    from lifelong.expand.fresh import new_config
    from lifelong.expand.mapping import ExpansionMap
    from lifelong.expand.plan import ExpansionPlan, plan_expansion
    from lifelong.expand.shape import model_shape

__all__ = [
    "ExpansionMap", "ExpansionPlan", "expand_checkpoint", "expand_model", "expansion_map", "explain_expansion",
    "family_of", "grow", "grow_adapter", "grow_adapter_folder", "grow_optimizer_state", "model_shape", "move_optimizer",
    "new_config", "parameter_groups", "plan_expansion", "train_only_new", "true_float64",
]  # fmt: skip

_NAMES = {
    "apply": ("expand_model", "expansion_map", "grow"),
    "attached": (
        "grow_adapter",
        "grow_adapter_folder",
        "grow_optimizer_state",
        "move_optimizer",
        "parameter_groups",
        "train_only_new",
    ),
    "checkpoint": ("expand_checkpoint", "explain_expansion"),
    "family": ("family_of",),
    "float64": ("true_float64",),
    "fresh": ("new_config",),
    "mapping": ("ExpansionMap",),
    "plan": ("ExpansionPlan", "plan_expansion"),
    "shape": ("model_shape",),
}  # fmt: skip
if not TYPE_CHECKING:  # with a __getattr__ type checkers would take every name
    __getattr__, __dir__ = lazy_exports(
        __name__, {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}
    )
