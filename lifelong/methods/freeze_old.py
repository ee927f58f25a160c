"""Layer-wise freezing: blocks that a growth has inserted learn, all others keep what they know.

Until the first growth everything learns; afterwards only the blocks that the last growth inserted.

Source: Wu et al. 2024, LLaMA Pro (arXiv 2401.02415), section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lifelong.errors import InputError
from lifelong.methods._held_entries import HeldEntries
from lifelong.methods._method import Method, StageContext, stock_parameters


@dataclass
class Plugin(Method):
    """With strength 1 old parameters are frozen and cost nothing; below 1 they take the rest of every step."""

    learning: list[str] = field(default_factory=list, init=False)
    frozen: list[str] = field(default_factory=list, init=False)
    held: HeldEntries | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.strength > 1:
            raise InputError(f"methods.freeze-old.strength: must be between 0 and 1, not {self.strength}")

    def begin_stage(self, context: StageContext) -> None:
        """Find the inserted blocks; freeze the rest."""
        parameters = stock_parameters(context.model)
        if context.mapping is not None:
            self.learning = inserted_parameters(context)
            if not self.learning:
                raise InputError(
                    f"methods.freeze-old: the growth of stage {context.stage_index} ({context.domain}) inserts no "
                    "layer, so nothing would be trained; grow `layers`, or use pnn"
                )
        self.held, self.frozen = None, []
        if not self.learning:
            return
        old = [name for name in parameters if name not in self.learning]
        if self.strength < 1:
            masks = {name: torch.ones_like(parameters[name], dtype=torch.bool) for name in old}
            self.held = HeldEntries.of(context.model, masks)
            return
        self.frozen = [name for name in old if parameters[name].requires_grad]
        for name in self.frozen:
            parameters[name].requires_grad_(False)

    def edit_gradients(self, model: PreTrainedModel) -> None:
        """Weights that are about to move."""
        if self.held is not None:
            self.held.remember(model)

    def end_step(self, model: PreTrainedModel) -> None:
        """Old blocks go back part of the way."""
        if self.held is not None:
            self.held.put_back(model, self.strength)

    def end_stage(self, context: StageContext) -> None:
        """The next stage starts with everything free."""
        parameters = dict(context.model.named_parameters())
        for name in self.frozen:
            parameters[name].requires_grad_(True)
        self.held, self.frozen = None, []

    def state_dict(self) -> dict[str, Tensor]:
        """Names of what still learns, as keys."""
        return {f"learning.{name}": torch.zeros(0) for name in self.learning}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.learning = [name.removeprefix("learning.") for name in state if name.startswith("learning.")]


def inserted_parameters(context: StageContext) -> list[str]:
    """Parameters of the blocks that the growth of this stage has inserted."""
    assert context.mapping is not None, "asked for only after a growth"
    present = dict(context.model.named_parameters())
    return [name for name, tensor in context.mapping.tensors.items() if tensor.inserted and name in present]
