"""Gradients of the replay memory, as lists with one tensor per trained parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lifelong.methods._method import Batch, StageContext


def memory_gradient(context: StageContext, model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """Gradient of the mean loss of a batch; the parameters' own gradients are not touched."""
    assert context.loss is not None, "the stage gives its loss"
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(context.loss(model, batch), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]


def dot(one: Sequence[Tensor | None], other: Sequence[Tensor]) -> Tensor:
    """Inner product; None is zero."""
    products = [(a.float() * b.float()).sum() for a, b in zip(one, other, strict=True) if a is not None]
    return torch.stack(products).sum()


def add_to_gradients(parameters: Sequence[Tensor], direction: Sequence[Tensor], factor: float) -> None:
    """Add a multiple of a direction to the gradients, in place; a parameter without a gradient gets none."""
    for parameter, part in zip(parameters, direction, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(part.to(parameter.grad.dtype), alpha=factor)
