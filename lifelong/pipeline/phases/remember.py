"""Updates the replay memory with blocks of this stage."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from lifelong import distributed
from lifelong.files import atomic_directory
from lifelong.ledger.folder import generation
from lifelong.pipeline.phases.phase import Phase
from lifelong.pipeline.stage import Stage
from lifelong.replay.memory import shrink_memory, write_memory_snapshot
from lifelong.replay.settings import GenerateSection
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
    if replay is None or not (replay.memory_tokens or (replay.generate is not None and replay.generate.keeps_all)):
        return None
    return stage.context.ledger.folder.memory(stage.index)


def _write(stage: Stage, model: PreTrainedModel, folder: Path) -> None:
    context, replay, seed = stage.context, stage.recipe.replay, stage.recipe.seed
    assert replay is not None, "asked for only where there is a memory"
    if not folder.exists():
        with atomic_directory(folder) as partial:
            if replay.memory_tokens:
                collator = context.collator(seed)
                write_memory_snapshot(
                    stage.kept_memory,
                    stage.domain.name,
                    stage.corpus,
                    capacity_tokens=replay.memory_tokens,
                    policy=replay.policy,
                    seed=seed,
                    out=partial,
                    stage=stage.index,
                    scores=memory_scores(replay, model, stage.corpus, collator, seed=seed, stage=stage.index),
                )
            if replay.generate is not None and replay.generate.keeps_all:
                _keep_generations(stage.generations, replay.generate, partial)


def _keep_generations(generations: Sequence[Path], section: GenerateSection, memory: Path) -> None:
    """Keep what every model wrote, with room for the next one."""
    for number, source in enumerate(generations):
        kept = generation(memory, number)
        kept.mkdir(parents=True)
        shrink_memory(source, kept, section.tokens_of(len(generations)))
        if (source / "targets").is_dir():
            shutil.copytree(source / "targets", kept / "targets")
