"""Throughput measurement: a few real steps of a stage on random tokens, with the trainer and models of a recipe.

Nothing is read and nothing is written but a temporary folder; weights are random. What the steps cost is what they will
cost in the run: the time of a step depends on shapes, not on what the numbers are.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers

from lifelong.inherit.distiller import Distiller
from lifelong.inherit.schedule import make_schedule
from lifelong.inherit.teachers._teacher import Teacher
from lifelong.inherit.teachers.model import OnlineTeacher
from lifelong.lm.objective import objective_of
from lifelong.records import ProbePoint
from lifelong.stream.blocks import Block
from lifelong.stream.collator import Collator, PackedRow
from lifelong.train.arguments import blocks_per_step, training_arguments
from lifelong.train.phase import TrainingInputs
from lifelong.train.stage_trainer import run_training_phase

SEGMENTS = 3
"""Documents in a made-up row: packed rows take the path with a mask."""


@dataclass(frozen=True)
class Rehearsal:
    """Inputs of a throughput measurement.

    Args:
        config: of the model.
        objective: clm or mlm.
        length: tokens of a row.
        train: the `train:` section.
        teacher: configuration of an online teacher, or None.
        steps: optimizer steps that are timed; one more comes before them.
    """

    config: Any
    objective: Literal["clm", "mlm"]
    length: int
    train: Mapping[str, Any]
    teacher: Any = None
    steps: int = 3


@dataclass(frozen=True)
class RehearsalResult:
    """Seconds of every timed step, and the tokens of one."""

    tokens_per_step: int
    seconds: tuple[float, ...]

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of the median step."""
        return self.tokens_per_step / statistics.median(self.seconds)


@dataclass
class _Clock:
    """Notes when a step is done; called where a probe would be."""

    device: str
    times: list[float] = field(default_factory=list)

    def __call__(self, _: int, __: int) -> Sequence[ProbePoint]:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return ()


def rehearse(rehearsal: Rehearsal, teacher: Teacher | None = None) -> RehearsalResult:
    """Train for `steps + 1` steps; the first, which makes the optimizer's state, is not timed.

    Args:
        rehearsal: what is tried.
        teacher: instead of a model with the teacher's configuration.

    Raises:
        InputError: a setting that TrainingArguments refuses.
    """
    transformers.set_seed(0)
    model = random_model(rehearsal.config, rehearsal.objective)
    if teacher is None and rehearsal.teacher is not None:
        teacher = OnlineTeacher(random_model(rehearsal.teacher, rehearsal.objective), rehearsal.objective)
    with tempfile.TemporaryDirectory() as folder:
        train = {**rehearsal.train, "save_strategy": "no", "report_to": "none"}
        arguments = training_arguments(train, output_dir=Path(folder), max_steps=rehearsal.steps + 1, seed=0)
        blocks = blocks_per_step(arguments)
        clock = _Clock(arguments.device.type)
        phase = TrainingInputs(
            "rehearsal",
            random_rows(rehearsal, blocks * (rehearsal.steps + 1)),
            dummy_collator(rehearsal),
            rehearsal.objective,
            blocks * rehearsal.length,
            None if teacher is None else Distiller(teacher, make_schedule("constant", alpha=0.5), temperature=2.0),
            probe=clock,
        )
        run_training_phase(model, arguments, phase)
    return RehearsalResult(blocks * rehearsal.length, tuple(np.diff(clock.times)[1:].tolist()))


def random_model(config: Any, objective: str) -> Any:
    """A randomly initialised model in float32."""
    return objective_of(objective).auto_class.from_config(config, dtype=torch.float32)


def dummy_collator(rehearsal: Rehearsal) -> Collator:
    """The stream's collator for token ids without a tokenizer."""
    return Collator(rehearsal.objective, rehearsal.length, pad_id=0, mask_id=1, vocab_size=rehearsal.config.vocab_size)


def random_rows(rehearsal: Rehearsal, count: int) -> list[PackedRow]:
    """Rows of random tokens, a few documents in each."""
    draw = np.random.default_rng(0)
    starts = np.linspace(0, rehearsal.length, SEGMENTS, endpoint=False).astype(np.int32)
    rows: list[PackedRow] = []
    for number in range(count):
        ids = draw.integers(2, rehearsal.config.vocab_size, rehearsal.length).astype(np.int32)
        rows.append(
            PackedRow(block=Block(ids, starts, np.zeros_like(starts)), domain_id=0, is_replay=False, mask_key=number)
        )
    return rows
