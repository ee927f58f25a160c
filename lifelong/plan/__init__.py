"""Plan of a run: shapes, cost and requirements, before a machine is rented for it."""

from __future__ import annotations

from typing import Literal

from lifelong.errors import InputError
from lifelong.plan.memory import Devices
from lifelong.plan.show import plan_tables
from lifelong.plan.speed import USUAL_MFU, Speed
from lifelong.plan.stages import PlannedStage, RunPlan, plan_recipe, taught_share
from lifelong.recipe.recipe import Recipe


def planned_devices(count: int, sharding: str | None, kind: str | None) -> Devices:
    """Devices as they are named on the command line; what is not named follows from the rest.

    Raises:
        InputError: a name or a number that cannot be.
    """
    if kind is None:
        kind = "cuda" if count > 1 or sharding not in (None, "none") or _gpu_here() else "cpu"
    chosen: Literal["cpu", "cuda"] = kind  # type: ignore[assignment]
    return Devices(count, sharding or ("ddp" if count > 1 else "none"), chosen)


def planned_speed(recipe: Recipe, flops: float | None, mfu: float | None, measure: bool) -> Speed | None:
    """Speed as it is named on the command line; None where it is not.

    Raises:
        InputError: two contradict each other, or a number cannot be.
    """
    if measure and flops is not None:
        raise InputError("plan: --measure and --flops exclude each other; give one of them")
    if mfu is not None and flops is None:
        raise InputError("--mfu: is a share of --flops; give the peak of a device too, for example --flops 400e12")
    if flops is None and not measure:
        return None
    share = 1.0 if measure else USUAL_MFU if mfu is None else mfu
    return Speed(flops, share, recipe.objective, recipe.sequence_length)


def _gpu_here() -> bool:
    import torch

    return torch.cuda.is_available()


__all__ = [
    "Devices", "PlannedStage", "RunPlan", "Speed", "plan_recipe", "plan_tables", "planned_devices", "planned_speed",
    "taught_share",
]  # fmt: skip
