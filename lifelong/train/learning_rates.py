"""The learning rate of a stage, and the weights that the next one starts from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lifelong.files import atomic_directory
from lifelong.ledger.folder import StageFolder
from lifelong.lm.checkpoint import save_model
from lifelong.methods._running_mean import StageAverage
from lifelong.train.carried_moments import CarriedMoments
from lifelong.train.phase import PreDecayCheckpoint
from lifelong.train.policies._policy import StageSpan, make_policy
from lifelong.train.settings import LrSection


def stage_span(stage_tokens: Sequence[int], index: int) -> StageSpan:
    """Span of a stage among the tokens of its stream, given those of every stage."""
    return StageSpan(sum(stage_tokens[:index]), stage_tokens[index], sum(stage_tokens))


def stage_lr_factor(lr: LrSection | None, span: StageSpan) -> Callable[[float], float] | None:
    """Progress of a stage -> learning rate over the peak; None where it follows `train.lr_scheduler_type`."""
    return None if lr is None else partial(make_policy(lr).factor, span)


def stage_curve(
    lr: LrSection | None, span: StageSpan, arguments: transformers.TrainingArguments, num_steps: int, points: int = 12
) -> list[float]:
    """Learning rates in the middle of equal parts of a stage, by policy or as transformers schedules it."""
    at = [min(num_steps - 1, int((place + 0.5) / points * num_steps)) for place in range(points)]
    peak = float(arguments.learning_rate)
    if (by_policy := stage_lr_factor(lr, span)) is not None:
        return [peak * by_policy(step / num_steps) for step in at]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler: Any = transformers.get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(num_steps),
        num_training_steps=num_steps,
        scheduler_specific_kwargs=dict(arguments.lr_scheduler_kwargs or {}),
    )
    factors = getattr(scheduler, "lr_lambdas", None)
    return [peak * float(factors[0](step)) for step in at] if factors else []


def warmup_steps(
    lr: LrSection | None, span: StageSpan, arguments: transformers.TrainingArguments, num_steps: int
) -> int:
    """Steps of a stage in which the learning rate rises, by policy or as transformers schedules it."""
    if lr is None:
        return int(arguments.get_warmup_steps(num_steps))
    return round(make_policy(lr).warmup(span) * num_steps)


def stage_average(lr: LrSection | None, num_steps: int) -> StageAverage | None:
    """Mean of the last weights of a stage, which its released model is; None where that is the end itself."""
    return None if lr is None or lr.average is None else StageAverage(num_steps=num_steps, share=lr.average)


def pre_decay_checkpoint(
    lr: LrSection | None,
    num_steps: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    work: StageFolder,
    moments: CarriedMoments | None = None,
) -> PreDecayCheckpoint | None:
    """When and how the next stage's weights are kept, with the moments there; None where it starts from the end."""
    step = None if lr is None else make_policy(lr).trunk_step(num_steps)
    if step is None:
        return None

    def save() -> None:
        if not work.trunk.exists():
            with atomic_directory(work.trunk) as partial_folder:
                save_model(model, tokenizer, partial_folder)
                if moments is not None:
                    moments.write(model, partial_folder / StageFolder.moments.name)

    return PreDecayCheckpoint(step, save)


def keep_pre_decay(work: StageFolder, folder: StageFolder) -> None:
    """Lay the weights that the next stage starts from, where they are not the released ones, beside the model."""
    if work.trunk.exists():
        shutil.copytree(work.trunk, folder.trunk)
