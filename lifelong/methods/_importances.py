"""Shared by EWC, MAS and SI: weights are pulled to anchors, each by its importance to earlier domains.

All importances are in nats per token of an earlier domain: the penalty `strength / 2 * sum F (w - a)^2` estimates by
how much the mean loss there has risen. With strength 1 an earlier domain counts as much as the new one, for models of
every size. When the model grows, anchors and importances go through the expansion map, and a move that the map carries
costs what it cost before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from lifelong.lm.objective import objective_of
from lifelong.methods._method import Batch, Method, StageContext, stock_parameters

Tensors = dict[str, Tensor]


@dataclass
class Anchor:
    """Weights at the end of a stage, and how important each of them was there; by parameter name."""

    weights: Tensors
    importances: Tensors

    def grown(self, context: StageContext) -> Anchor:
        """Grow anchors and importances to the size of the stage."""
        if context.mapping is None:
            return self
        names = stock_parameters(context.model)
        weights = context.mapping.apply_weights(self.weights)
        importances = context.mapping.apply_gradients(self.importances, power=2)
        return Anchor({name: weights[name] for name in names}, {name: importances[name] for name in names})

    def moved_to(self, device: torch.device) -> Anchor:
        """Move anchors and importances to the device of the model."""
        return Anchor(
            {name: value.to(device) for name, value in self.weights.items()},
            {name: value.to(device) for name, value in self.importances.items()},
        )


def wide(value: Tensor) -> Tensor:
    """The values in float32 or better: sums of bfloat16 lose what is small against them."""
    value = value.detach()
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def weights_of(model: PreTrainedModel) -> Tensors:
    """A copy of all parameters, tied ones once."""
    return {name: parameter.detach().clone() for name, parameter in stock_parameters(model).items()}


@dataclass
class AnchoredMethod(Method):
    """A penalty around one anchor or several."""

    strength: float = 1.0
    anchors: list[Anchor] = field(default_factory=list, init=False)

    def begin_stage(self, context: StageContext) -> None:
        """Bring the anchors to the size of the model."""
        device = context.model.device
        self.anchors = [anchor.grown(context).moved_to(device) for anchor in self.anchors]

    def loss_term(self, model: PreTrainedModel) -> Tensor | None:
        """Half the strength times the weighted squares of the moves; None without an anchor."""
        moving = {name: value for name, value in stock_parameters(model).items() if value.requires_grad}
        if not self.anchors or not moving:
            return None
        penalty: Tensor = _Penalty.apply(self.anchors, tuple(moving), *moving.values())
        return penalty * self.strength

    def state_dict(self) -> dict[str, Tensor]:
        """Anchors and importances, numbered."""
        state: Tensors = {}
        for number, anchor in enumerate(self.anchors):
            state |= {f"anchor.{number}.{name}": value for name, value in anchor.weights.items()}
            state |= {f"importance.{number}.{name}": value for name, value in anchor.importances.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take anchors and importances back."""
        weights, importances = (_numbered(state, prefix) for prefix in ("anchor.", "importance."))
        self.anchors = [Anchor(weights[number], importances[number]) for number in sorted(weights)]


class _Penalty(torch.autograd.Function):
    """Half the weighted squares of all moves.

    The gradient is summed as it goes: what is kept for it has the size of the model, however many anchors there are.
    """

    @staticmethod
    def forward(ctx: Any, anchors: Sequence[Anchor], names: Sequence[str], *parameters: Tensor) -> Tensor:
        pulls: list[Tensor] = []
        squares: list[Tensor] = []
        for anchor in anchors:
            moves = torch._foreach_sub(parameters, [anchor.weights[name] for name in names])
            pull = torch._foreach_mul(moves, [anchor.importances[name] for name in names])
            squares += [(one * two).sum() for one, two in zip(moves, pull, strict=True)]
            if pulls:
                torch._foreach_add_(pulls, pull)
            else:
                pulls = list(pull)
        ctx.pulls = pulls
        return torch.stack(squares).sum() / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.pulls, upstream)


def _numbered(state: Mapping[str, Tensor], prefix: str) -> dict[int, Tensors]:
    found: dict[int, Tensors] = {}
    for key, value in state.items():
        if key.startswith(prefix):
            number, _, name = key[len(prefix) :].partition(".")
            found.setdefault(int(number), {})[name] = value
    return found


def mean_over_rows(
    context: StageContext, samples: int, per_row: Callable[[Batch], tuple[Tensor, Callable[[Tensor], Tensor]]]
) -> Tensors:
    """Mean over rows of the stage's own text of something made of the gradient of something, by parameter name.

    Args:
        context: of the stage, which has just been trained.
        samples: rows to look at.
        per_row: batch of one row -> (what to differentiate, what to make of each gradient).
    """
    model = context.model
    names, parameters = zip(*((n, p) for n, p in stock_parameters(model).items() if p.requires_grad), strict=True)
    sums = [torch.zeros_like(wide(parameter)) for parameter in parameters]
    training, count = model.training, 0
    model.eval()
    try:
        for batch in context.own_batches(samples):
            value, made_of = per_row(batch)
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            for running, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    running.add_(made_of(wide(gradient)))
            count += 1
    finally:
        model.train(training)
    means = {name: value / count for name, value in zip(names, sums, strict=True)}
    return {name: means.get(name, torch.zeros_like(wide(p))) for name, p in stock_parameters(model).items()}


def fisher_information(context: StageContext, samples: int) -> Tensors:
    """Diagonal of the Fisher information of one predicted token, from the text itself (the empirical Fisher).

    Scores of the tokens of a row are uncorrelated under the model, so the square of their sum is the sum of their
    squares in expectation: one backward pass a row is enough, and the result does not depend on the row's length.
    """

    def per_row(batch: Batch) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        assert context.loss is not None, "the stage gives its loss"
        tokens = predicted_tokens(batch, context.objective)
        return context.loss(context.model, batch), lambda gradient: gradient.square() * tokens

    return mean_over_rows(context, samples, per_row)


def predicted_tokens(batch: Batch, objective: str) -> int:
    """Tokens of a batch that are predicted."""
    return int((objective_of(objective).predicted(batch["labels"]) != -100).sum())


def total(tensors: Mapping[str, Tensor]) -> float:
    """Sum over all entries."""
    return float(sum(value.double().sum() for value in tensors.values()))
