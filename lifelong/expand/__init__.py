"""Growing a model without changing its function."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lifelong.expand.apply import expand_model as expand_model
    from lifelong.expand.apply import expansion_map as expansion_map
    from lifelong.expand.apply import grow as grow
    from lifelong.expand.attached import grow_adapter as grow_adapter
    from lifelong.expand.attached import grow_optimizer_state as grow_optimizer_state
    from lifelong.expand.attached import move_optimizer as move_optimizer
    from lifelong.expand.attached import parameter_groups as parameter_groups
    from lifelong.expand.attached import train_only_new as train_only_new
    from lifelong.expand.checkpoint import expand_checkpoint as expand_checkpoint
    from lifelong.expand.checkpoint import explain_expansion as explain_expansion
    from lifelong.expand.family import family_of as family_of
    from lifelong.expand.float64 import true_float64 as true_float64
    from lifelong.expand.fresh import new_config as new_config
    from lifelong.expand.mapping import ExpansionMap as ExpansionMap
    from lifelong.expand.plan import ExpansionPlan as ExpansionPlan
    from lifelong.expand.plan import plan_expansion as plan_expansion
    from lifelong.expand.shape import model_shape as model_shape
    from lifelong.expand.verify import verify as verify

# the names of families are listed without torch: parts load when they are first used
_PLACES = {
    "apply": ("expand_model", "expansion_map", "grow"),
    "attached": ("grow_adapter", "grow_optimizer_state", "move_optimizer", "parameter_groups", "train_only_new"),
    "checkpoint": ("expand_checkpoint", "explain_expansion"),
    "family": ("family_of",),
    "float64": ("true_float64",),
    "fresh": ("new_config",),
    "mapping": ("ExpansionMap",),
    "plan": ("ExpansionPlan", "plan_expansion"),
    "shape": ("model_shape",),
    "verify": ("verify",),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}
__all__ = [
    "ExpansionMap", "ExpansionPlan", "expand_checkpoint", "expand_model", "expansion_map", "explain_expansion",
    "family_of", "grow", "grow_adapter", "grow_optimizer_state", "model_shape", "move_optimizer", "new_config",
    "parameter_groups", "plan_expansion", "train_only_new", "true_float64", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value  # a submodule of the same name must not stand in its way
    return value
