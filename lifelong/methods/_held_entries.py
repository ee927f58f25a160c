"""Entries of the weights that take only a part of every step, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass
class HeldEntries:
    """Masks of held entries by parameter name (True for entries that stay), and the weights before the step."""

    masks: Mapping[str, Tensor]
    before: dict[str, Tensor]

    @classmethod
    def of(cls, model: PreTrainedModel, masks: Mapping[str, Tensor]) -> HeldEntries:
        """Masks on the device of their parameters; those that hold nothing are left out."""
        devices = {name: parameter.device for name, parameter in model.named_parameters()}
        return cls({name: mask.to(devices[name]) for name, mask in masks.items() if name in devices and mask.any()}, {})

    def remember(self, model: PreTrainedModel) -> None:
        """Keep what a step is about to move."""
        parameters = dict(model.named_parameters())
        self.before = {name: parameters[name].detach().clone() for name in self.masks}

    @torch.no_grad()
    def put_back(self, model: PreTrainedModel, share: float) -> None:
        """Take `share` of the step back where entries are held; a share of 1 restores every bit."""
        parameters = dict(model.named_parameters())
        for name, mask in self.masks.items():
            moved, before = parameters[name], self.before[name]
            kept = before if share == 1 else torch.lerp(moved, before, share)
            moved.copy_(torch.where(mask, kept, moved))
        self.before = {}
