"""Base class of the phases of a stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel

from lifelong.ledger.folder import StageFolder
from lifelong.pipeline.stage import Stage
from lifelong.recipe.recipe import Recipe
from lifelong.records import Cost
from lifelong.train.phase import PhaseLog


@dataclass(frozen=True)
class PlannedTokens:
    """Tokens of a phase before it is run: `trained` as its budget says, `evaluated` on top.

    `generated` are written by the model before the stage, in streams of `stream_length`; `targeted` take one more pass
    of that model.
    """

    trained: int = 0
    evaluated: float = 0.0
    generated: int = 0
    stream_length: int = 0
    targeted: int = 0


class Phase:
    """One part of a stage, from a model to a model.

    A phase writes its result below the stage's work folder with one rename, so that a killed run continues at the
    phase where it stopped. Every process of a run calls every method except `keep` and `cost`, which the main process
    calls when the stage is committed.
    """

    name: ClassVar[str]
    """Label on the display and of the cost."""

    def applies(self, stage: Stage) -> bool:
        """Whether the stage goes through this phase."""
        del stage
        return True

    def run(self, stage: Stage, model: PreTrainedModel) -> PreTrainedModel:
        """Do the phase's work, or read the result of an earlier call that got so far."""
        raise NotImplementedError

    def curve(self, stage: Stage) -> PhaseLog | None:
        """Training log and counters, where the phase has trained."""
        del stage
        return None

    def keep(self, stage: Stage, folder: StageFolder) -> None:
        """Write beside the stage's model what the run keeps of this phase."""

    def cost(self, stage: Stage, model: PreTrainedModel) -> Iterator[tuple[str, Cost]]:
        """Cost of the phase, by label."""
        del stage, model
        yield from ()

    def facts(self, stage: Stage) -> dict[str, Any]:
        """Fields that the phase adds to the stage's line of the ledger."""
        del stage
        return {}

    def planned(self, recipe: Recipe, index: int) -> PlannedTokens:
        """Planned cost in stage `index`."""
        del recipe, index
        return PlannedTokens()

    def planned_before(self, recipe: Recipe, index: int, config: Any) -> PlannedTokens:
        """Planned cost of what the model before stage `index`, of this configuration, does."""
        del recipe, index, config
        return PlannedTokens()
