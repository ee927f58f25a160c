"""Replay of a stage, from the recipe and from what is committed: weights, and the controller that adjusts them.

Steering reads small probes of the earlier domains and changes the rows of the steps to come. Its state goes
into every checkpoint, so that a stage that is resumed makes the same choices again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifelong.errors import UnknownNameError
from lifelong.evaluate.scores import block_losses
from lifelong.records import DomainLoss, ProbePoint
from lifelong.replay.controllers import AdaptiveController, BudgetController, Controller, replay_weights
from lifelong.replay.dataset import StageDataset
from lifelong.replay.memory import ReplayMemory
from lifelong.replay.settings import ReplaySection
from lifelong.stream.blocks import StoredBlocks
from lifelong.stream.collator import Collator
from lifelong.stream.heldout import Heldout
from lifelong.stream.ordering import key_of, uniforms

STEERED = ("adaptive", "budget")
MOST_PROBES = 20
SCORED_PER_PLACE = 8
NEVER_SCORED = -1e30
PROBING_COST = 0.05  # of the arithmetic of a stage; a token that is only evaluated costs a third of a trained one

Adjustment = Callable[[Mapping[str, float]], Mapping[str, float]]


@dataclass(frozen=True)
class ReplayInputs:
    """Inputs of the replay of a stage beside its memory.

    Args:
        section: of the recipe.
        mix: how replay is divided among earlier domains.
        budget: allowed rise of the perplexity by domain.
        losses: held-out losses after each committed stage, oldest first.
        references: every loss from which a budget may count, those of the initial model and of watched domains too.
        heldouts: held-out documents of the domains that steer, by name.
        probe_tokens: of a probe of one domain.
    """

    section: ReplaySection
    mix: str
    budget: Mapping[str, float]
    losses: Sequence[Sequence[DomainLoss]]
    references: Sequence[Sequence[DomainLoss]]
    heldouts: Mapping[str, Heldout]
    probe_tokens: int


def first_weights(inputs: ReplayInputs, memory: ReplayMemory) -> dict[str, float]:
    """Initial replay weights of a stage."""
    history = {
        domain: [loss.nats_per_token for row in inputs.losses for loss in row if loss.domain == domain]
        for domain in memory.domains
    }
    given = inputs.section.weights or {}
    return {
        domain: weight * given.get(domain, 1.0)
        for domain, weight in replay_weights(inputs.mix, memory, history).items()
    }


def budget_reference(inputs: ReplayInputs, domain: str) -> float:
    """Nats per token of a domain at its best so far, on the documents that a probe reads."""
    count = len(inputs.heldouts[domain].head(inputs.probe_tokens))
    best = min(
        # a row in which fewer documents were read, before there was a budget, says nothing of those of a probe
        (
            loss
            for row in inputs.references
            for loss in row
            if loss.domain == domain and len(loss.document_nats) >= count
        ),
        key=lambda loss: loss.nats_per_token,
    )
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
        """Take the losses measured after `step` steps."""
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
        """State that a resumed stage needs."""
        return {"controller": self.controller.state_dict(), "dataset": self.dataset.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state."""
        self.controller.load_state_dict(state["controller"])
        self.dataset.load_state_dict(state["dataset"])


def make_steering(inputs: ReplayInputs, dataset: StageDataset, adjust: Adjustment) -> ReplaySteering | None:
    """Controller of the replay of a stage; None where nothing is replayed or the mix is fixed.

    Raises:
        InputError: the bounds of the share are none.
    """
    section, domains = inputs.section, dataset.replay_domains
    if not domains or not section.share or inputs.mix not in STEERED:
        return None
    steps = steering_steps(inputs, dataset)
    if not steps:
        return None
    controller: Controller = AdaptiveController(section.share, dataset.weights)
    if inputs.mix == "budget":
        budget = {name: allowed for name, allowed in inputs.budget.items() if name in inputs.heldouts}
        controller = BudgetController(
            budget,
            {name: budget_reference(inputs, name) for name in budget},
            domains=domains,
            share=section.share,
            min_share=section.min_share,
            max_share=section.max_share,
        )
    return ReplaySteering(controller, dataset, steps, adjust)


def steering_steps(inputs: ReplayInputs, dataset: StageDataset) -> list[int]:
    """Steps of a stage after which earlier domains are probed, evenly spaced."""
    wanted = inputs.section.probes
    if wanted is None:
        probed = sum(heldout.head(inputs.probe_tokens).num_tokens for heldout in inputs.heldouts.values())
        wanted = affordable_probes(dataset.num_steps * dataset.tokens_per_step, probed)
    return sorted({round(number * dataset.num_steps / (wanted + 1)) for number in range(1, wanted + 1)} - {0})


def affordable_probes(trained: int, probed: int) -> int:
    """Probes of `probed` tokens each that cost at most a twentieth of a stage of `trained` tokens."""
    return min(MOST_PROBES, int(3 * PROBING_COST * trained / max(probed, 1)))


def check_steering(mix: str, sections: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Lines for `train:` sections that do not fit a steered mix: rows would be fetched before they are chosen."""
    named = (section.get("dataloader_num_workers") for section in sections)
    workers = max((count for count in named if isinstance(count, int)), default=0)  # another value is refused elsewhere
    if mix in STEERED and workers:
        yield (
            f"train.dataloader_num_workers: {workers}, but `replay.mix: {mix}` chooses rows while it "
            "trains; set 0, or take `replay.mix: uniform` or `proportional`"
        )


def check_weights(section: ReplaySection, mix: str, domains: Sequence[str]) -> Iterator[str]:
    """Lines for replay weights of domains that nothing is kept of, or beside a mix that decides on its own."""
    if section.weights and mix in STEERED:
        yield (
            f"replay.weights: `mix: {mix}` moves the weights while it trains; take `mix: uniform` or `proportional`, "
            "or leave weights out"
        )
    for domain in section.weights or ():
        if domain not in domains:
            yield str(UnknownNameError("replayed domain", domain, domains, f"replay.weights.{domain}"))


def check_budget(budget: Iterable[str], domains: Sequence[str]) -> Iterator[str]:
    """A line for every domain with a budget that no stage has and that is not watched."""
    for domain in budget:
        if domain not in domains:
            yield str(UnknownNameError("stage or watched domain", domain, domains, "budget"))


def memory_scores(
    section: ReplaySection, model: Any, corpus: StoredBlocks, collator: Collator, *, seed: int, stage: int
) -> NDArray[np.float64] | None:
    """Scores by which a loss-ranked memory keeps blocks: their loss under the model that has just learned them.

    Only blocks that random draws would offer are scored, several for each place in the memory; the others
    rank behind them.
    """
    if section.policy != "loss-ranked":
        return None
    places = section.memory_tokens // collator.sequence_length + 1
    chance = uniforms(key_of(seed, "scored", stage), len(corpus))
    drawn = np.sort(np.argsort(chance, kind="stable")[: SCORED_PER_PLACE * places])
    scores = np.full(len(corpus), NEVER_SCORED)
    scores[drawn] = block_losses(model, [corpus[int(row)] for row in drawn], collator)
    return scores
