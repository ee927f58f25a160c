"""Held-out losses of every domain after the stage, samples, and the forgetting budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import monotonic

from transformers import PreTrainedModel

from lifelong import distributed
from lifelong.errors import ForgettingBudgetExceeded
from lifelong.evaluate.samples import sample_texts
from lifelong.files import free_name, read_json, write_json
from lifelong.ledger.folder import StageFolder
from lifelong.ledger.history import read_losses
from lifelong.lm.flops import forward_flops_per_token
from lifelong.pipeline.phases.phase import Phase, PlannedTokens
from lifelong.pipeline.stage import Stage
from lifelong.recipe.recipe import Recipe
from lifelong.records import Cost, DomainLoss
from lifelong.stream.heldout import Heldout

FEWEST_DOCUMENTS = 5


class Evaluate(Phase):
    """A row of the loss matrix."""

    name = "evaluate"

    def run(self, stage: Stage, model: PreTrainedModel) -> PreTrainedModel:
        """Measure, and refuse a stage that has forgotten more than its budget allows."""
        assert stage.result is not None, "evaluated after training"
        context = stage.context
        context.observer.phase_started(self.name, 0)
        if not stage.has(stage.result.losses):
            _measure(stage, model, stage.result)
        written = [stage.result.losses, *([stage.result.watched] if stage.context.watched else [])]
        stage.losses = list({loss.domain: loss for path in written for loss in read_losses(path)}.values())
        context.observer.evaluated(stage.index, stage.losses)
        distributed.run_on_main_process(lambda: _check_budget(stage))
        return model

    def cost(self, stage: Stage, model: PreTrainedModel) -> Iterator[tuple[str, Cost]]:
        """One pass over the held-out text."""
        forward = forward_flops_per_token(model, stage.recipe.sequence_length, stage.recipe.objective)
        tokens = sum(loss.tokens_read for loss in stage.losses)
        yield self.name, Cost(0, tokens * forward, 0.0, read_json(stage.work.seconds(self.name)))

    def planned(self, recipe: Recipe, index: int) -> PlannedTokens:
        """All domains after every stage, and before the first; those that are watched too."""
        domains, fewer = len(recipe.measured), recipe.tokens_between(index)
        whole = (
            domains if fewer is None else min(domains, len({Path(recipe.stages[index].domain).stem, *recipe.budget}))
        )
        tokens = recipe.evaluation_tokens * (whole + (domains if index == 0 else 0))
        return PlannedTokens(evaluated=tokens + (fewer or 0) * (domains - whole))


def _measure(stage: Stage, model: PreTrainedModel, folder: StageFolder) -> None:
    context, started = stage.context, monotonic()
    losses = context.evaluate(model, lambda heldout: _read_before(stage, heldout))
    seconds = monotonic() - started

    def written() -> None:
        write_json(stage.work.seconds(Evaluate.name), seconds)
        samples = sample_texts(
            model,
            context.tokenizer,
            context.heldouts,
            stage=stage.index,
            objective=stage.recipe.objective,
            num_samples=stage.recipe.evaluate.samples,
        )
        write_json(folder.samples, [asdict(sample) for sample in samples])
        context.write_losses(folder, losses)

    distributed.run_on_main_process(written)


def _read_before(stage: Stage, heldout: Heldout) -> tuple[int, DomainLoss] | None:
    """Documents of a domain that are read after this stage, and its last whole reading; None: all are read.

    What the stage learned is read whole, and what has a budget, which is decided on; a handful of documents says too
    little of the others.
    """
    tokens, name = stage.recipe.tokens_between(stage.index), heldout.domain
    if tokens is None or name in {domain.name for domain in stage.domains} or name in stage.recipe.budget:
        return None
    count = max(FEWEST_DOCUMENTS, len(heldout.head(tokens)))
    whole = [loss for row in stage.reference_losses for loss in row if loss.domain == name and loss.is_whole]
    return (count, whole[-1]) if whole and count < len(heldout) else None


def _check_budget(stage: Stage) -> None:
    """A broken forgetting budget leaves the stage in `rejected/`, uncommitted.

    Raises:
        ForgettingBudgetExceeded: names every domain that was forgotten by more than its budget.
    """
    recipe, ledger = stage.recipe, stage.context.ledger
    if not recipe.budget:
        return
    broken, known = [], stage.budgeted_domains
    for loss in stage.losses:
        allowed = recipe.budget.get(loss.domain)
        old = [old.perplexity for row in stage.reference_losses for old in row if old.domain == loss.domain]
        if allowed is None or not old or loss.domain not in known:
            continue
        rise = loss.perplexity / min(old) - 1
        if rise > allowed:
            broken.append(f"{loss.domain}: perplexity rose by {rise:.1%}, the budget is {allowed:.1%}")
    if broken:
        assert stage.result is not None, "checked after training"
        rejected = free_name(ledger.folder.rejected(stage.name))
        rejected.parent.mkdir(exist_ok=True)
        stage.result.path.rename(rejected)
        raise ForgettingBudgetExceeded(
            f"Do not ship: {'; '.join(broken)}"
            f"\n  stage {stage.name} exceeds its forgetting budget and is not committed; it is kept in {rejected}"
            f"\n  {_cure(stage)},"
            "\n  and run the same command with that --set: it resumes from the last committed stage"
        )


def _cure(stage: Stage) -> str:
    """What could help, by what the stage had against forgetting."""
    if stage.memory() is not None:
        return "raise replay.share, max_share or memory_tokens, or lower train.learning_rate or tokens"
    teacher = "" if stage.recipe.inherit or not stage.has_learned else "inherit={teacher: previous}, "
    return (
        "there was no memory to replay: try replay={generate: {tokens: 100k}} (the model before writes what it knows), "
        f"replay={{proxy: {{CARD: 100k}}}} (text like that which was forgotten), {teacher}a lower train.learning_rate "
        "or fewer tokens"
    )
