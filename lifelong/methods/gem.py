"""GEM: a step may raise the loss on no earlier domain's part of the memory; the nearest such step is taken.

It holds one gradient a domain. The quadratic program of the paper is solved in its dual, where it is a least squares
problem with non-negative unknowns, one per domain.

Source: Lopez-Paz and Ranzato 2017 (arXiv 1706.08840), equations 10 and 11.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor
from transformers import PreTrainedModel

from lifelong.methods._memory_gradients import add_to_gradients, dot, memory_gradient
from lifelong.methods._method import Method, StageContext

RIDGE = 1e-8
"""Relative to the mean squared length of the gradients: the program stays solvable when two of them are alike."""


@dataclass
class Plugin(Method):
    """Settings: `samples` rows a domain at every step, `margin` of the dual unknowns (the paper's gamma)."""

    needs_memory: ClassVar[bool] = True

    samples: int = 8
    margin: float = 0.0
    context: StageContext | None = field(default=None, init=False)
    references: list[list[Tensor]] = field(default_factory=list, init=False)

    def begin_stage(self, context: StageContext) -> None:
        """Know where the memory is."""
        self.context = context

    def begin_step(self, model: PreTrainedModel, step: int) -> None:
        """The gradient of every earlier domain, on a fresh sample of each."""
        context = self.context
        self.references = []
        if context is None or context.memory is None:
            return
        for domain in context.memory.domains:
            batch = context.memory.batch(self.samples, step, domain)
            self.references.append(memory_gradient(context, model, batch))
            self.extra_tokens += self.samples * context.sequence_length

    @torch.no_grad()
    def edit_gradients(self, model: PreTrainedModel) -> None:
        """Add as much of the domains' gradients as is needed."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradient = [p.grad for p in parameters]
        along = np.array([float(dot(gradient, reference)) for reference in self.references])
        if not len(along) or (along >= 0).all():
            return
        gram = np.array([[float(dot(one, other)) for other in self.references] for one in self.references])
        for reference, factor in zip(self.references, dual_solution(gram, along, self.margin), strict=True):
            add_to_gradients(parameters, reference, self.strength * float(factor))

    def planned_tokens(self, num_steps: int, sequence_length: int, earlier_domains: int) -> float:
        """A sample of every earlier domain at every step."""
        return float(num_steps * self.samples * sequence_length * earlier_domains)

    def end_stage(self, context: StageContext) -> None:
        """Drop the reference gradients; nothing is kept."""
        del context
        self.context, self.references = None, []


def dual_solution(gram: NDArray[np.float64], along: NDArray[np.float64], margin: float = 0.0) -> NDArray[np.float64]:
    """Argmin over v >= margin of v' gram v / 2 + along' v.

    Args:
        gram: `[K, K]`, inner products of the domains' gradients.
        along: `[K]`, of those with the step's own.
        margin: least value of every unknown.
    """
    size = len(along)
    # a program with v = u + margin, u >= 0, as least squares: gram = L L', so |L'u + L^-1 linear|^2 / 2
    lower = np.linalg.cholesky(gram + (RIDGE * np.trace(gram) / size + 1e-30) * np.eye(size))
    linear = along + gram @ np.full(size, margin)
    unknowns, _ = nnls(lower.T, -np.linalg.solve(lower, linear))
    return np.asarray(unknowns + margin)
