"""Replay controllers: which old domain to draw from, and how much replay a forgetting budget needs.

Plain numbers in, plain numbers out; nothing here knows a model.

Source: adaptive mixing after ELLE (Qin et al. 2022, Findings of ACL, section 3.3), where the share of an old
domain follows how fast its validation loss falls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lifelong.errors import InputError, UnknownNameError
from lifelong.replay.memory import ReplayMemory

MIXES = ("uniform", "proportional", "adaptive", "budget")
# this part of replay is always divided evenly: a domain that is not drawn at all is soon lost
_EVEN_PART = 0.5
# how many of the last probes say how fast a loss falls now
_RECENT = 4


def replay_weights(
    mix: str, memory: ReplayMemory, history: Mapping[str, Sequence[float]] | None = None
) -> dict[str, float]:
    """Initial replay weights of the domains of the memory; they sum to 1.

    Args:
        mix: uniform: evenly; proportional: by the tokens each domain was trained on; adaptive and budget: by
            how far its loss is above its best, the room in which it can fall. The domain learned last
            is at its best and will rise from there: it counts with the most that any other domain ever
            lost right after its own stage, or is above its best now.
        memory: whose domains are meant.
        history: losses in nats per token of each domain after each stage so far, in order.

    Raises:
        UnknownNameError: no such mix.
    """
    if mix not in MIXES:
        raise UnknownNameError("mix", mix, MIXES, "replay.mix")
    names = memory.domains
    if mix == "uniform":
        return _normalised(dict.fromkeys(names, 1.0))
    if mix == "proportional":
        return _normalised({name: float(memory.seen_tokens_of(name)) for name in names})
    losses = {name: list((history or {}).get(name, ())) for name in names}
    room = {name: values[-1] - min(values) if values else 0.0 for name, values in losses.items()}
    num_stages = 1 + max((item.stage for item in memory.experiences), default=-1)
    learned = {item.domain: item.stage for item in reversed(memory.experiences)}
    after_own = {name: values[learned[name] - num_stages :] for name, values in losses.items()}
    falls_next = [values[1] - values[0] for values in after_own.values() if len(values) > 1]
    most = max([0.0, *room.values(), *falls_next])
    newest = [item.domain for item in memory.experiences if item.stage == num_stages - 1]
    return _partly_even({name: most if name in newest else value for name, value in room.items()})


def adaptive_weights(probes: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Weights during a stage: half evenly, half by how fast the loss of each domain falls over the last probes.

    Args:
        probes: losses in nats per token of each old domain since the stage began, in the order of time.
    """
    falls = {}
    for name, series in probes.items():
        values = series[-_RECENT:]
        steps = len(values) - 1
        falls[name] = max(0.0, (values[0] - values[-1]) / steps) if steps > 0 else 0.0
    return _partly_even(falls)


def _partly_even(scores: Mapping[str, float]) -> dict[str, float]:
    even = _normalised(dict.fromkeys(scores, 1.0))
    if sum(scores.values()) <= 0:
        return even
    scored = _normalised(scores)
    return {name: _EVEN_PART * even[name] + (1 - _EVEN_PART) * scored[name] for name in scores}


def _normalised(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: value / total for name, value in weights.items()}


@dataclass(frozen=True)
class Mix:
    """A replay share in [0, 1) and the weights of the domains."""

    share: float
    weights: Mapping[str, float]


class Controller(Protocol):
    """Decides the mix of the coming steps from what probes measured."""

    def observe(self, losses: Mapping[str, float]) -> Mix:
        """The mix after a probe: nats per token of the domains that were measured."""

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed stage needs, in plain JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state."""


class AdaptiveController:
    """Keeps the share and divides it by how fast the loss of each old domain falls.

    Args:
        share: of replay, all the time.
        weights: to begin with; they name the domains.
    """

    def __init__(self, share: float, weights: Mapping[str, float]) -> None:
        self.share, self.weights = share, dict(weights)
        self.probes: dict[str, list[float]] = {name: [] for name in weights}

    def observe(self, losses: Mapping[str, float]) -> Mix:
        """The mix after a probe; the first one cannot tell a fall yet and leaves the weights as they began."""
        for name, values in self.probes.items():
            if name in losses:
                values.append(losses[name])
        if any(len(values) > 1 for values in self.probes.values()):
            self.weights = adaptive_weights(self.probes)
        return Mix(self.share, dict(self.weights))

    def state_dict(self) -> dict[str, Any]:
        """Every probe so far."""
        return {"probes": {name: list(values) for name, values in self.probes.items()}, "weights": dict(self.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state."""
        self.probes = {name: list(values) for name, values in state["probes"].items()}
        self.weights = dict(state["weights"])


class BudgetController:
    """Raises or lowers the replay share so that no domain forgets more than its budget.

    The budget usage of a domain is the relative rise of its perplexity over its reference, divided by what the
    budget allows: 1 is a budget just used up. After every probe the share is multiplied by
    exp(gain * (highest usage - target)), within bounds, so that it settles where the most endangered
    domain is at `target` of its budget. It is raised by `gain` and lowered by `decrease_gain`, more slowly:
    what is forgotten costs more than what is replayed in vain. Half of replay goes to the domains by their
    usage, half evenly to all, those without a budget too.

    Args:
        budget: allowed relative rise of perplexity by domain, 0.02 for 2 %.
        reference: best nats per token of each of these domains so far, on the documents that are probed.
        domains: all domains of the memory; those of the budget if absent.
        share: to begin with.
        min_share: lower bound of the share.
        max_share: upper bound of the share.
        gain: of an increase of the share after a probe.
        decrease_gain: of a decrease.
        target: the part of its budget that a domain may use before the share rises.

    Raises:
        InputError: a budget is not positive, has no reference, or the bounds are invalid.
    """

    def __init__(
        self,
        budget: Mapping[str, float],
        reference: Mapping[str, float],
        *,
        domains: Sequence[str] | None = None,
        share: float = 0.1,
        min_share: float = 0.01,
        max_share: float = 0.5,
        gain: float = 1.0,
        decrease_gain: float = 0.7,
        target: float = 0.7,
    ) -> None:
        if not 0.0 < min_share <= max_share < 1.0:
            raise InputError(f"replay share: 0 < min_share <= max_share < 1 is needed, got {min_share} and {max_share}")
        for name, allowed in budget.items():
            if not allowed > 0:
                raise InputError(f"budget.{name}: {allowed!r} is not a positive rise, such as 2%")
            if name not in reference:
                raise InputError(f"budget.{name}: no loss of this domain was measured yet")
        self.budget = dict(budget)
        self.domains = tuple(budget if domains is None else domains)
        self.reference = {name: reference[name] for name in budget}
        self.min_share, self.max_share, self.target = min_share, max_share, target
        self.gain, self.decrease_gain = gain, decrease_gain
        self.share = min(max_share, max(min_share, share))
        self.usage: dict[str, float] = dict.fromkeys(budget, 0.0)

    def budget_usage(self, name: str, nats: float) -> float:
        """Part of its budget that a domain uses at this loss."""
        return math.expm1(min(nats - self.reference[name], 50.0)) / self.budget[name]

    def observe(self, losses: Mapping[str, float]) -> Mix:
        """The mix after a probe: nats per token of the domains that were measured."""
        measured = {name: self.budget_usage(name, losses[name]) for name in self.budget if name in losses}
        self.usage.update(measured)
        if measured:
            # one wild probe moves the share by no more than a factor e^gain
            error = max(-1.0, min(1.0, max(self.usage.values()) - self.target))
            pull = (self.gain if error > 0 else self.decrease_gain) * error
            self.share = min(self.max_share, max(self.min_share, self.share * math.exp(pull)))
        return Mix(self.share, self.weights)

    @property
    def weights(self) -> dict[str, float]:
        """Replay weights: half evenly, half by budget usage."""
        return _partly_even({name: max(0.0, self.usage.get(name, 0.0)) for name in self.domains})

    @property
    def broken(self) -> dict[str, float]:
        """Domains over their budget at the last probe, with the relative rise of their perplexity."""
        over = {name: value for name, value in self.usage.items() if value > 1.0}
        return {name: value * self.budget[name] for name, value in over.items()}

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed stage needs."""
        return {"share": self.share, "pressures": dict(self.usage)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state."""
        self.share = float(state["share"])
        self.usage = {name: float(value) for name, value in state["pressures"].items()}
