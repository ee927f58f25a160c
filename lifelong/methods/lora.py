"""LoRA: a domain is learned by low-rank additions to the weights, which are merged when the stage is done.

Every stage has an adapter of its own; it is also laid beside the stage's model, as `adapter.safetensors`. A model from
random weights is trained whole first. Adapters are peft's.

Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lifelong.errors import InputError
from lifelong.methods._method import Method, StageContext

ADAPTER = "domain"


@dataclass
class Plugin(Method):
    """Settings: `rank`, and `alpha` over it the factor of the additions, which the strength multiplies."""

    exclusive: ClassVar[bool] = True
    adds_parameters: ClassVar[bool] = True

    rank: int = 8
    alpha: float = 16.0
    adapted: Any = field(default=None, init=False)
    factors: dict[str, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"methods.lora.rank: must be at least 1, not {self.rank}")

    def begin_stage(self, context: StageContext) -> None:
        """Put an adapter that adds nothing yet on every linear layer but the output; freeze the rest."""
        self.adapted, self.factors = None, {}
        if not context.has_learned:
            return
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel

        config = LoraConfig(
            r=self.rank, lora_alpha=self.strength * self.alpha, lora_dropout=0.0, target_modules="all-linear"
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            self.adapted = LoraModel(context.model, {ADAPTER: config}, ADAPTER)

    def end_stage(self, context: StageContext) -> None:
        """Merge, and leave a stock model."""
        if self.adapted is None:
            return
        self.factors = {
            name: value.detach().clone().contiguous()
            for name, value in context.model.named_parameters()
            if ".lora_" in name
        }
        self.adapted.merge_and_unload()
        for attribute in ("peft_config", "active_adapter"):
            context.model.__dict__.pop(attribute, None)
        context.model.requires_grad_(True)
        self.adapted = None

    def exports(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The adapter of the stage."""
        return {"adapter.safetensors": self.factors} if self.factors else {}
