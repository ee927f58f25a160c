"""Plain training on the memory right after a growth.

Source: Qin et al. 2022 (ELLE, arXiv 2203.06311), function recovering warmup.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from lifelong.ledger.folder import WorkFolder
from lifelong.pipeline.phases.phase import PlannedTokens
from lifelong.pipeline.phases.training import Rows, TrainingPhase
from lifelong.pipeline.stage import Stage
from lifelong.recipe.recipe import Recipe
from lifelong.replay.steering import first_weights


class Recover(TrainingPhase):
    """Without teacher, methods, probes or schedule."""

    name = "recover"
    folder = WorkFolder.recovered.name

    def applies(self, stage: Stage) -> bool:
        """Whether a growth has something to recover from."""
        return bool(self.planned(stage.recipe, stage.index).trained) and stage.memory() is not None

    def rows(self, stage: Stage, model: PreTrainedModel) -> Rows:
        """The memory alone."""
        del model
        memory, replay = stage.memory(), stage.replay
        assert memory is not None, "applies only where there is a memory"
        assert replay is not None, "a memory belongs to a replay section"
        weights = first_weights(replay, memory)
        tokens = self.planned(stage.recipe, stage.index).trained
        return Rows(tokens, stage.seed + 1, memory=memory, share=1.0, weights=weights)

    def planned(self, recipe: Recipe, index: int) -> PlannedTokens:
        """`recover.tokens` where the stage grows and an earlier one has left a memory."""
        grows = recipe.recover is not None and recipe.stages[index].expand is not None and index > 0
        return PlannedTokens(recipe.recover.tokens if recipe.recover is not None and grows else 0)
