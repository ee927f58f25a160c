"""Answers of a chat model to a few prompts after every stage: does it still stop, keep a format, know a language."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

from transformers import PreTrainedModel

from lifelong import distributed
from lifelong.evaluate.chat import TYPICAL_TOKENS, answer_prompts, has_template
from lifelong.files import read_json, write_json
from lifelong.lm.flops import forward_flops_per_token
from lifelong.pipeline.phases.phase import Phase, PlannedTokens
from lifelong.pipeline.stage import Stage
from lifelong.recipe.recipe import Recipe
from lifelong.records import ChatScores, Cost


class Chat(Phase):
    """Nothing for a base without a chat template, or with `evaluate: {chat: off}`."""

    name = "chat"

    def applies(self, stage: Stage) -> bool:
        """Whether the base is a chat model."""
        return stage.context.is_chat

    def run(self, stage: Stage, model: PreTrainedModel) -> PreTrainedModel:
        """Ask, and keep the answers beside the stage's model."""
        assert stage.result is not None, "asked after training"
        path = stage.result.chat
        stage.context.observer.phase_started(self.name, 0)

        def asked() -> None:
            started = monotonic()
            scores = answer_prompts(model, stage.context.tokenizer, stage=stage.index)
            write_json(stage.work.seconds(self.name), monotonic() - started)
            write_json(path, scores.to_json())

        if not stage.has(path):
            distributed.run_on_main_process(asked)
        return model

    def cost(self, stage: Stage, model: PreTrainedModel) -> Iterator[tuple[str, Cost]]:
        """Every token of prompts and answers once: what is before them is kept in the cache."""
        if stage.result is not None and self.applies(stage):
            scores = ChatScores.from_json(read_json(stage.result.chat))
            forward = forward_flops_per_token(model, stage.recipe.sequence_length, stage.recipe.objective)
            yield self.name, Cost(0, scores.tokens * forward, 0.0, read_json(stage.work.seconds(self.name)))

    def planned(self, recipe: Recipe, index: int) -> PlannedTokens:
        """A round after every stage, and one before the first."""
        source = recipe.chat_checkpoint
        asked = source is not None and has_template(source, recipe.revision_of(source))
        return PlannedTokens(evaluated=TYPICAL_TOKENS * (2 if index == 0 else 1) if asked else 0.0)
