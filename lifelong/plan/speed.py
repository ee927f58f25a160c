"""FLOP/s of a device: as given, or measured on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lifelong.errors import InputError
from lifelong.lm.checkpoint import meta_model
from lifelong.lm.flops import training_flops_per_token
from lifelong.plan.throughput import Workload, measure_throughput

USUAL_MFU = 0.4
"""Share of its peak that a device reaches in training where nothing else is said."""


@dataclass(frozen=True)
class Speed:
    """FLOP/s of one device.

    Args:
        flops: its peak, as its maker says; None: measured here, for every shape on its own.
        mfu: share of the peak that is reached; 1 where measured.
        objective: of the recipe.
        length: tokens of a row.
        steps: timed for a measurement.
        measured: FLOP/s by shape, filled by measuring.

    Raises:
        InputError: a number that cannot be.
    """

    flops: float | None = None
    mfu: float = USUAL_MFU
    objective: Literal["clm", "mlm"] = "clm"
    length: int = 256
    steps: int = 3
    measured: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.flops is not None and not self.flops > 0:
            raise InputError(f"--flops: must be greater than 0, not {self.flops:g}")
        if not 0 < self.mfu <= 1:
            raise InputError(f"--mfu: must be in (0, 1], not {self.mfu:g}")

    def seconds(self, flops: float, devices: int, config: Any, train: Mapping[str, Any]) -> float:
        """Seconds for this many FLOPs on this many devices, with a model of this configuration."""
        return flops / (devices * self.achieved(config, train))

    def achieved(self, config: Any, train: Mapping[str, Any]) -> float:
        """FLOP/s of one device in training."""
        if self.flops is not None:
            return self.flops * self.mfu
        key = f"{config.to_json_string()} {sorted(train.items(), key=lambda item: item[0])}"
        if key not in self.measured:
            self.measured[key] = measure(config, train, self.objective, self.length, self.steps)
        return self.measured[key]

    def describe(self) -> str:
        """Describe the speed for the plan."""
        if self.flops is not None:
            return f"{self.flops:.3g} FLOP/s per device at {self.mfu:.0%}"
        reached = sorted(self.measured.values())
        spread = f"{reached[0]:.3g}" if len(reached) == 1 else f"{reached[0]:.3g} to {reached[-1]:.3g}"
        return f"measured here: {spread} FLOP/s per device"


def measure(config: Any, train: Mapping[str, Any], objective: Literal["clm", "mlm"], length: int, steps: int) -> float:
    """FLOP/s of a few real steps on this machine.

    Raises:
        InputError: a setting that this machine does not have.
    """
    result = measure_throughput(Workload(config, objective, length, train, steps=steps))
    return result.tokens_per_second * training_flops_per_token(meta_model(config, objective), length, objective)
