"""What a stage replays, from the recipe and from what is committed: weights, and who steers them while it trains.

Steering reads small probes of the earlier domains and changes the rows of the steps to come. Its state goes
into every checkpoint, so that a stage that is resumed makes the same choices again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifelong.errors import InputError, UnknownNameError
from lifelong.evaluate.scores import block_losses
from lifelong.ledger.history import read_losses
from lifelong.pipeline.run import RunContext
from lifelong.recipe.recipe import Recipe
from lifelong.records import DomainLoss, ProbePoint
from lifelong.replay.controllers import AdaptiveController, BudgetController, Controller, replay_weights
from lifelong.replay.memory import ReplayMemory
from lifelong.stream.blocks import BlockStore
from lifelong.stream.mixing import StageDataset
from lifelong.stream.ordering import key_of, uniforms

STEERED = ("adaptive", "budget")
MOST_PROBES = 20
SCORED_PER_PLACE = 8
NEVER_SCORED = -1e30
PROBING_COST = 0.05  # of the arithmetic of a stage; a token that is only evaluated costs a third of a trained one

Adjustment = Callable[[Mapping[str, float]], Mapping[str, float]]


def losses_so_far(context: RunContext) -> list[tuple[DomainLoss, ...]]:
    """Held-out losses after each committed stage."""
    ledger = context.ledger
    return [read_losses(ledger.stage_folder(record) / "losses.json") for record in ledger.stages]


def first_weights(context: RunContext, memory: ReplayMemory) -> dict[str, float]:
    """How a stage begins to divide replay."""
    rows = losses_so_far(context)
    history = {
        domain: [loss.nats_per_token for row in rows for loss in row if loss.domain == domain]
        for domain in memory.domains
    }
    return replay_weights(context.recipe.replay_mix, memory, history)


def budget_reference(context: RunContext, domain: str, tokens: int) -> float:
    """Nats per token of a domain at its best so far, on the documents that a probe of `tokens` reads."""
    best = min(
        (loss for row in losses_so_far(context) for loss in row if loss.domain == domain),
        key=lambda loss: loss.nats_per_token,
    )
    count = len(context.heldouts[context.columns.index(domain)].head(tokens))
    return sum(best.document_nats[:count]) / sum(best.document_tokens[:count])


class ReplaySteering:
    """Lets a controller change what a stage replays, from the step after next on.

    The loader has fetched the beginning of the next step already when a step ends; what a probe after n steps
    finds therefore acts from step n + 1 (counted from 0) on.

    Args:
        controller: decides.
        dataset: of the stage, read in this process.
        steps: numbers of finished steps after which it is asked.
        adjust: what methods make of the weights.
    """

    def __init__(self, controller: Controller, dataset: StageDataset, steps: Sequence[int], adjust: Adjustment) -> None:
        self.controller, self.dataset, self.steps, self.adjust = controller, dataset, frozenset(steps), adjust

    def observe(self, step: int, points: Sequence[ProbePoint]) -> None:
        """After `step` steps these losses were measured."""
        if step not in self.steps:
            return
        mix = self.controller.observe({point.domain: point.nats_per_token for point in points})
        if step + 1 < self.dataset.num_steps:
            self.dataset.set_mix(step + 1, mix.share, self.adjust(mix.weights))

    @property
    def mixes(self) -> list[dict[str, Any]]:
        """Every mix of the stage and the step from which it held."""
        names = self.dataset.replay_domains
        return [
            {"step": step, "share": share, "weights": dict(zip(names, weights, strict=True))}
            for step, share, weights in self.dataset.state_dict()["segments"]
        ]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed stage needs."""
        return {"controller": self.controller.state_dict(), "dataset": self.dataset.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state."""
        self.controller.load_state_dict(state["controller"])
        self.dataset.load_state_dict(state["dataset"])


def make_steering(context: RunContext, dataset: StageDataset, adjust: Adjustment) -> ReplaySteering | None:
    """Who steers the replay of a stage; None where nothing is replayed or the mix is fixed.

    Raises:
        InputError: the bounds of the share are none.
    """
    recipe, domains = context.recipe, dataset.replay_domains
    if recipe.replay is None or not domains or not recipe.replay.share or recipe.replay_mix not in STEERED:
        return None
    steps = steering_steps(context, dataset, recipe)
    if not steps:
        return None
    controller: Controller = AdaptiveController(recipe.replay.share, dataset.weights)
    if recipe.replay_mix == "budget":
        seen = {record.domain for record in context.ledger.stages}
        budget = {name: allowed for name, allowed in recipe.budget.items() if name in seen}
        controller = BudgetController(
            budget,
            {name: budget_reference(context, name, recipe.evaluate.probe_tokens) for name in budget},
            domains=domains,
            share=recipe.replay.share,
            lowest=recipe.replay.min_share,
            highest=recipe.replay.max_share,
        )
    return ReplaySteering(controller, dataset, steps, adjust)


def steering_steps(context: RunContext, dataset: StageDataset, recipe: Recipe) -> list[int]:
    """Steps of a stage after which earlier domains are probed, evenly spaced."""
    assert recipe.replay is not None, "only replay is steered"
    wanted = recipe.replay.probes
    if wanted is None:
        seen = {record.domain for record in context.ledger.stages}
        probed = sum(
            context.heldouts[column].head(recipe.evaluate.probe_tokens).num_tokens
            for column, name in enumerate(context.columns)
            if name in seen
        )
        trained = dataset.num_steps * dataset.tokens_per_step
        wanted = min(MOST_PROBES, int(3 * PROBING_COST * trained / max(probed, 1)))
    return sorted({round(number * dataset.num_steps / (wanted + 1)) for number in range(1, wanted + 1)} - {0})


def check_steering(recipe: Recipe, names: Sequence[str] = ()) -> None:
    """What a recipe with a steered mix or a budget must fulfil.

    Args:
        recipe: to check.
        names: of all domains, where their cards have been read.

    Raises:
        InputError: rows would be fetched before they are chosen, or a budget is of no domain.
    """
    sections = [recipe.train, *(stage.train for stage in recipe.stages)]
    workers = max((section.get("dataloader_num_workers", 0) for section in sections), default=0)
    if recipe.replay is not None and recipe.replay_mix in STEERED and workers:
        raise InputError(
            f"train.dataloader_num_workers: {workers}, but `replay.mix: {recipe.replay_mix}` chooses rows while it "
            "trains; set 0, or take `replay.mix: uniform` or `proportional`"
        )
    for domain in recipe.budget if names else ():
        if domain not in names:
            raise UnknownNameError("stage with domain", domain, names, "budget")


def memory_scores(context: RunContext, model: Any, corpus: BlockStore, stage: int) -> NDArray[np.float64] | None:
    """What a loss-ranked memory keeps blocks by: their loss under the model that has just learned them.

    Only blocks that random draws would offer are scored, several for each place in the memory; the others
    rank behind them.
    """
    replay = context.recipe.replay
    if replay is None or replay.policy != "loss-ranked":
        return None
    places = replay.memory_tokens // context.recipe.sequence_length + 1
    chance = uniforms(key_of(context.recipe.seed, "scored", stage), len(corpus))
    drawn = np.sort(np.argsort(chance, kind="stable")[: SCORED_PER_PLACE * places])
    scores = np.full(len(corpus), NEVER_SCORED)
    scores[drawn] = block_losses(model, [corpus[int(row)] for row in drawn], context.collator(context.recipe.seed))
    return scores
