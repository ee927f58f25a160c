"""Learning rates of old and new entries in the stage that grows: `expand: {train: new}` and `expand: {rates: ...}`.

A parameter of a grown model usually holds both, so that parameter groups of an optimizer cannot tell them apart.
Instead each entry takes its multiple of the step that the optimizer has made, which for AdamW and SGD is what the same
multiple of the learning rate would have done, weight decay included. A multiple of 0 holds an entry bit for bit; its
gradient is zeroed before clipping, and a parameter without new entries is frozen and costs no gradient.

Source: Rusu et al. 2016 (arXiv 1606.04671) for held columns; Gu et al. 2026, Grow, Don't Overwrite (arXiv 2603.08647).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lifelong.expand import ExpansionMap
from lifelong.methods._method import Method, stock_parameters


@dataclass
class GrownEntries(Method):
    """Multiples of the learning rate for the entries that a growth kept and for those that it added."""

    old: float = 1.0
    new: float = 1.0
    is_new: dict[str, Tensor] = field(default_factory=dict, init=False)
    before: dict[str, Tensor] = field(default_factory=dict, init=False)
    frozen: list[str] = field(default_factory=list, init=False)
    hooks: list[Any] = field(default_factory=list, init=False)

    def begin(self, model: PreTrainedModel, mapping: ExpansionMap) -> None:
        """Find the new entries; freeze or mask what is held."""
        parameters = stock_parameters(model)
        masks = {name: mask.to(parameters[name].device) for name, mask in mapping.masks() if name in parameters}
        for name, mask in masks.items():
            parameter = parameters[name]
            if self.old == 0 and not bool(mask.any()):
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
                    self.frozen.append(name)
            elif bool(mask.all()) and self.new == 1:
                continue
            else:
                self.is_new[name] = mask
                if self.old == 0 and not bool(mask.all()):
                    self.hooks.append(parameter.register_hook(lambda gradient, mask=mask: gradient * mask))

    def edit_gradients(self, model: PreTrainedModel) -> None:
        """Keep what the step is about to move."""
        parameters = stock_parameters(model)
        self.before = {name: parameters[name].detach().clone() for name in self.is_new}

    @torch.no_grad()
    def end_step(self, model: PreTrainedModel) -> None:
        """Scale the step of each entry; weight decay and old momentum move entries that have no gradient."""
        parameters = stock_parameters(model)
        for name, is_new in self.is_new.items():
            before, moved = self.before[name], parameters[name]
            moved.copy_(torch.where(is_new, _part(before, moved, self.new), _part(before, moved, self.old)))
        self.before = {}

    def end(self, model: PreTrainedModel) -> None:
        """The next stage starts with everything free."""
        parameters = stock_parameters(model)
        for name in self.frozen:
            parameters[name].requires_grad_(True)
        for hook in self.hooks:
            hook.remove()
        self.is_new, self.frozen, self.hooks = {}, [], []


def _part(before: Tensor, moved: Tensor, rate: float) -> Tensor:
    """A multiple of the step; 0 and 1 are exact."""
    return before if rate == 0 else moved.detach() if rate == 1 else torch.lerp(before, moved.detach(), rate)


def new_entry_counts(mapping: ExpansionMap) -> tuple[int, int]:
    """Entries that a growth has added, and all entries of the grown model."""
    counts = [(int(mask.sum()), mask.numel()) for _, mask in mapping.masks()]
    return sum(new for new, _ in counts), sum(every for _, every in counts)
