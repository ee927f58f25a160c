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
from lifelong.lm.checkpoint import cast_weights
from lifelong.lm.objective import objective_of
from lifelong.methods._frozen_base import hold_base
from lifelong.plan.memory import Held
from lifelong.plan.step import adapter_of
from lifelong.records import ProbePoint
from lifelong.stream.blocks import Block
from lifelong.stream.collator import Collator, PackedRow
from lifelong.train.arguments import blocks_per_step, training_arguments
from lifelong.train.phase import TrainingInputs
from lifelong.train.stage_trainer import run_training_phase

SEGMENTS = 3
"""Documents in a made-up row: packed rows take the path with a mask."""


@dataclass(frozen=True)
class Workload:
    """Inputs of a throughput measurement.

    Args:
        config: of the model.
        objective: clm or mlm.
        length: tokens of a row.
        train: the `train:` section.
        teacher: configuration of an online teacher, or None.
        steps: optimizer steps that are timed; one more comes before them.
        held: precision of the weights, and an adapter on them.
    """

    config: Any
    objective: Literal["clm", "mlm"]
    length: int
    train: Mapping[str, Any]
    teacher: Any = None
    steps: int = 3
    held: Held = field(default_factory=Held)


@dataclass(frozen=True)
class Throughput:
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


def measure_throughput(workload: Workload, teacher: Teacher | None = None, model: Any = None) -> Throughput:
    """Train for `steps + 1` steps; the first, which makes the optimizer's state, is not timed.

    Args:
        workload: what is measured.
        teacher: instead of a model with the teacher's configuration.
        model: what `held_model` made, where that is not to be part of what a caller measures.

    Raises:
        InputError: a setting that TrainingArguments refuses.
    """
    transformers.set_seed(0)
    if model is None:
        model = held_model(workload.config, workload.objective, workload.held)
    if teacher is None and workload.teacher is not None:
        frozen = cast_weights(random_model(workload.teacher, workload.objective), workload.held.computes)
        teacher = OnlineTeacher(frozen, workload.objective)
    with tempfile.TemporaryDirectory() as folder:
        train = {**workload.train, "save_strategy": "no", "report_to": "none"}
        arguments = training_arguments(train, output_dir=Path(folder), max_steps=workload.steps + 1, seed=0)
        blocks = blocks_per_step(arguments)
        clock = _Clock(arguments.device.type)
        phase = TrainingInputs(
            "throughput",
            random_rows(workload, blocks * (workload.steps + 1)),
            dummy_collator(workload),
            workload.objective,
            blocks * workload.length,
            None if teacher is None else Distiller(teacher, make_schedule("constant", alpha=0.5), temperature=2.0),
            probe=clock,
        )
        run_training_phase(model, arguments, phase)
    return Throughput(blocks * workload.length, tuple(np.diff(clock.times)[1:].tolist()))


def random_model(config: Any, objective: str) -> Any:
    """A randomly initialised model in float32."""
    return objective_of(objective).auto_class.from_config(config, dtype=torch.float32)


def held_model(config: Any, objective: str, held: Held) -> Any:
    """A randomly initialised model, held as a stage holds it."""
    model = cast_weights(random_model(config, objective), held.computes)
    if held.adapter is not None:
        hold_base(model, held.base or "same")
        adapter_of(held.adapter).attach(model)
    return model


def dummy_collator(workload: Workload) -> Collator:
    """The stream's collator for token ids without a tokenizer."""
    return Collator(workload.objective, workload.length, pad_id=0, mask_id=1, vocab_size=workload.config.vocab_size)


def random_rows(workload: Workload, count: int) -> list[PackedRow]:
    """Rows of random tokens, a few documents in each."""
    draw = np.random.default_rng(0)
    starts = np.linspace(0, workload.length, SEGMENTS, endpoint=False).astype(np.int32)
    rows: list[PackedRow] = []
    for number in range(count):
        ids = draw.integers(2, workload.config.vocab_size, workload.length).astype(np.int32)
        rows.append(
            PackedRow(block=Block(ids, starts, np.zeros_like(starts)), domain_id=0, is_replay=False, mask_key=number)
        )
    return rows
