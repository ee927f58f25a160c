"""Optimizer steps of a token budget."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class StagePlan:
    """Optimizer steps of a stage. `tokens` is what they train on, at least what was asked for."""

    num_steps: int
    blocks_per_step: int
    tokens_per_step: int
    tokens: int


def stage_plan(tokens: int, sequence_length: int, blocks_per_step: int) -> StagePlan:
    """Steps that a token budget needs, in whole steps: rounded up, at least one."""
    per_step = sequence_length * blocks_per_step
    num_steps = max(1, math.ceil(tokens / per_step))
    return StagePlan(num_steps, blocks_per_step, per_step, num_steps * per_step)
