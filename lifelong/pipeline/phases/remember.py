"""Updates the replay memory with blocks of this stage."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from lifelong import distributed
from lifelong.files import atomic_directory
from lifelong.pipeline.phases.phase import Phase
from lifelong.pipeline.stage import Stage
from lifelong.replay.memory import write_memory_snapshot
from lifelong.replay.steering import memory_scores


class Remember(Phase):
    """Write the next memory beside the last one, which stays until the stage is committed."""

    name = "commit"

    def run(self, stage: Stage, model: PreTrainedModel) -> PreTrainedModel:
        """Draw blocks of the stage's text into the memory."""
        stage.context.observer.phase_started(self.name, 0)
        if (folder := memory_folder(stage)) is not None:
            distributed.run_on_main_process(lambda: _write(stage, model, folder))
        return model


def memory_folder(stage: Stage) -> Path | None:
    """The memory that the stage leaves; None where nothing is kept."""
    replay = stage.recipe.replay
    if replay is None or not replay.memory_tokens:
        return None
    return stage.context.ledger.folder.memory(stage.index)


def _write(stage: Stage, model: PreTrainedModel, folder: Path) -> None:
    context, replay, seed = stage.context, stage.recipe.replay, stage.recipe.seed
    assert replay is not None, "asked for only where there is a memory"
    if not folder.exists():
        with atomic_directory(folder) as partial:
            write_memory_snapshot(
                context.ledger.folder.memory_before(stage.index),
                stage.domain.name,
                stage.corpus,
                capacity_tokens=replay.memory_tokens,
                policy=replay.policy,
                seed=seed,
                out=partial,
                stage=stage.index,
                scores=memory_scores(replay, model, stage.corpus, context.collator(seed), seed=seed, stage=stage.index),
            )
