"""Inputs and results of a training phase."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lifelong.errors import Interrupted
from lifelong.inherit.distiller import Distiller
from lifelong.methods._method import Method
from lifelong.records import FactPoint, ProbePoint, RunObserver, TrainPoint


@dataclass
class StopRequest:
    """Set by a signal handler; while `deferred`, training looks at it after every optimizer step, then saves."""

    requested: bool = False
    deferred: bool = False

    def obey(self) -> None:
        """Stop here if that was asked for; what is done is on disk.

        Raises:
            Interrupted: it was.
        """
        if self.requested:
            raise Interrupted("stopped as asked; everything is saved, run the same command to continue")


@dataclass
class PhaseLog:
    """Training log and counters of a phase.

    `replayed` counts replayed tokens by domain; `seconds` does not hold `probe_seconds`; `mapped` is as in
    `TeacherCost`.
    """

    train: list[TrainPoint] = field(default_factory=list)
    probes: list[ProbePoint] = field(default_factory=list)
    tokens: int = 0
    teacher_tokens: int = 0
    seconds: float = 0.0
    teacher_flops: float = 0.0
    replayed: dict[str, int] = field(default_factory=dict)
    probe_tokens: int = 0
    probe_seconds: float = 0.0
    facts: list[FactPoint] = field(default_factory=list)
    mapped: dict[str, tuple[int, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PhaseLog:
        """Inverse of `to_json`."""
        return cls(
            train=[TrainPoint(**point) for point in data["train"]],
            probes=[ProbePoint(**point) for point in data["probes"]],
            tokens=data["tokens"],
            teacher_tokens=data["teacher_tokens"],
            seconds=data["seconds"],
            teacher_flops=data.get("teacher_flops", 0.0),
            replayed=dict(data.get("replayed", {})),
            probe_tokens=data.get("probe_tokens", 0),
            probe_seconds=data.get("probe_seconds", 0.0),
            facts=[FactPoint(**point) for point in data.get("facts", ())],
            mapped={name: (rows, mass) for name, (rows, mass) in data.get("mapped", {}).items()},
        )


class Steering(Protocol):
    """Changes what comes next by what a probe found."""

    def observe(self, step: int, points: Sequence[ProbePoint]) -> None:
        """Take the losses measured after `step` optimizer steps."""

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed phase needs, in plain JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""


@dataclass
class TrainingInputs:
    """Everything one phase of training needs besides the model.

    `probe(step, tokens)` gives held-out losses where a probe is due and nothing elsewhere; step 0 is before the
    first one. `domains` are the names behind the batches' `domain_ids`; `tokens_before` were trained on before this
    phase; `tracker_dir` is where trackers that write files put them.
    """

    name: str
    dataset: Any
    collator: Callable[[Sequence[Any]], dict[str, Tensor]]
    objective: str
    tokens_per_step: int
    distiller: Distiller | None = None
    methods: Sequence[Method] = ()
    probe: Callable[[int, int], Sequence[ProbePoint]] | None = None
    observer: RunObserver = field(default_factory=RunObserver)
    stop: StopRequest = field(default_factory=StopRequest)
    domains: Sequence[str] = ()
    tokens_before: int = 0
    tracker_dir: Path | None = None
    fact_probe: Callable[[int, int], Sequence[FactPoint]] | None = None
    steering: Steering | None = None
    lr_factor: Callable[[float], float] | None = None
    pre_decay: PreDecayCheckpoint | None = None


@dataclass(frozen=True)
class PreDecayCheckpoint:
    """Weights that the next stage starts from, where they are not the last ones: `save` is called after `step`."""

    step: int
    save: Callable[[], None]
