"""Running means of the weights along a stage: what `lr.average` and the method `ema` release."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lifelong.methods._importances import Tensors, wide
from lifelong.methods._method import Method, stock_parameters

COUNT, MEAN = "count", "mean."


@dataclass
class RunningMean:
    """A mean by parameter name, in float32 or better; `count` weights went into it."""

    mean: Tensors = field(default_factory=dict)
    count: int = 0

    @torch.no_grad()
    def add(self, model: PreTrainedModel, weight: float | None = None) -> None:
        """Take in the weights as they are now: each alike, or with `weight` against all of those before."""
        parameters = stock_parameters(model)
        self.count += 1
        if self.count == 1:
            self.mean = {name: wide(value).clone() for name, value in parameters.items()}
            return
        self.mean = {name: self.mean[name].to(value.device) for name, value in parameters.items()}  # after a resumption
        means = [self.mean[name] for name in parameters]
        now = [wide(value) for value in parameters.values()]
        torch._foreach_lerp_(means, now, 1 / self.count if weight is None else weight)

    @torch.no_grad()
    def put_into(self, model: PreTrainedModel, share: float = 1.0) -> None:
        """Move the weights to the mean, or `share` of the way, and free the mean."""
        for name, parameter in stock_parameters(model).items() if self.count else ():
            mean = self.mean[name].to(parameter.device)
            parameter.copy_(mean if share == 1 else torch.lerp(wide(parameter), mean, share))
        self.mean, self.count = {}, 0

    def state_dict(self) -> Tensors:
        """State; nothing before the first weights."""
        if not self.count:
            return {}
        return {COUNT: torch.tensor(self.count), **{f"{MEAN}{name}": value for name, value in self.mean.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self.count = int(state[COUNT]) if COUNT in state else 0
        self.mean = {key[len(MEAN) :]: value for key, value in state.items() if key.startswith(MEAN)}


@dataclass
class StageAverage(Method):
    """Mean of the weights over the last `share` of a stage of `num_steps` steps; see `lr.average`.

    What counts is the length of the window, not how many weights of it are averaged: at most `most` are, evenly spaced
    and the last of them among them, so that a long stage does not pay for every step.

    Source: Tian et al. 2025, WSM (arXiv 2507.17634), section 3; Li et al. 2025, PMA (arXiv 2505.12082).
    """

    num_steps: int = 1
    share: float = 0.2
    running: RunningMean = field(default_factory=RunningMean)
    most: ClassVar[int] = 50
    _done: int = field(default=0, init=False)

    def is_due(self, done: int) -> bool:
        """Whether the weights after `done` steps are averaged."""
        window = max(1, round(self.share * self.num_steps))
        left = self.num_steps - done
        return left < window and left % max(1, window // self.most) == 0

    def begin_step(self, model: PreTrainedModel, step: int) -> None:
        """Note where the stage is."""
        del model
        self._done = step

    def end_step(self, model: PreTrainedModel) -> None:
        """Take the weights in where they are due."""
        if self.is_due(self._done + 1):
            self.running.add(model)

    def state_dict(self) -> dict[str, Tensor]:
        """The mean so far."""
        return self.running.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.running.load_state_dict(state)
