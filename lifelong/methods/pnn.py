"""Progressive networks: every domain gets new width or depth that reads the old part; the old part never changes.

A stage after the first one has to grow (`expand:`); only the entries that the growth has added are trained. The old
weights are part of the new ones, bit for bit, so that the model of any earlier stage can be cut out again. What all
domains share is the output: unlike in the paper, where every task has its own, it reads old and new parts together.

Source: Rusu et al. 2016 (arXiv 1606.04671), section 2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PreTrainedModel

from lifelong.errors import InputError
from lifelong.methods._held_entries import HeldEntries
from lifelong.methods._method import Method, StageContext


@dataclass
class Plugin(Method):
    """With a strength below 1 the old part takes the rest of every step."""

    held: HeldEntries | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.strength > 1:
            raise InputError(f"methods.pnn.strength: must be between 0 and 1, not {self.strength}")

    def begin_stage(self, context: StageContext) -> None:
        """Hold everything that the growth did not add."""
        self.held = None
        if context.mapping is None:
            if context.has_learned:
                raise InputError(
                    f"methods.pnn: stage {context.stage_index} ({context.domain}) does not grow, so there is nothing "
                    "new to train; give it an `expand:`, for example expand: {intermediate_size: ...}"
                )
            return
        self.held = HeldEntries.of(context.model, {name: ~is_new for name, is_new in context.mapping.masks()})

    def edit_gradients(self, model: PreTrainedModel) -> None:
        """Weights that are about to move."""
        if self.held is not None:
            self.held.remember(model)

    def end_step(self, model: PreTrainedModel) -> None:
        """Weight decay and old momentum move without a gradient: entries are put back, not only left out."""
        if self.held is not None:
            self.held.put_back(model, self.strength)

    def end_stage(self, context: StageContext) -> None:
        """Release the held entries; nothing is kept."""
        del context
        self.held = None
