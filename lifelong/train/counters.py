"""Tokens and losses of a phase since the last log point, counted in each process and summed over all of them.

Shape suffixes: B sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lifelong import distributed
from lifelong.lm.batch import on_host

SUMS = ("loss", "ce", "kl", "tokens", "rate")
OF_TEACHING = ("kl", "rate")


class TokenCounter:
    """Sums of losses and counts of tokens of this process; after `reduce` the first process has those of all.

    Args:
        domains: of the loss matrix, by their column; empty where columns have no names.
        num_methods: methods that may insert tokens into a batch.
    """

    def __init__(self, domains: Sequence[str], num_methods: int) -> None:
        self.domains = list(domains)
        self.sums: dict[str, Tensor | float] = {}
        self.replay_tokens = 0
        self._replayed: dict[str, int] = {}
        self._inserted: list[Tensor | float] = [0.0] * num_methods

    def count(self, inputs: Mapping[str, Tensor], outputs: Any, *, taught: bool) -> None:
        """A micro-batch: its losses per token, and its replayed tokens by domain.

        What is summed stays where it was computed until `reduce` reads it.
        """
        for name, value in (("ce", outputs.ce), ("kl", outputs.kl if taught else None), ("rate", outputs.rate)):
            if value is not None:
                self.sums[name] = self.sums.get(name, 0.0) + value.detach().double() * outputs.num_tokens
        self.sums["tokens"] = self.sums.get("tokens", 0.0) + float(outputs.num_tokens)
        if "is_replay" in inputs:
            tokens_B = (on_host(inputs, "segment_ids") > 0).sum(1) * on_host(inputs, "is_replay")
            for column, tokens in zip(on_host(inputs, "domain_ids").tolist(), tokens_B.tolist(), strict=True):
                if tokens:
                    name = self.domains[column] if self.domains else str(column)
                    self._replayed[name] = self._replayed.get(name, 0) + tokens
                    self.replay_tokens += tokens

    def count_loss(self, loss: Tensor) -> None:
        """The whole loss of a micro-batch, terms of methods included."""
        self.sums["loss"] = self.sums.get("loss", 0.0) + loss.detach().double()

    def count_inserted(self, method: int, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        """Tokens that a method has added to a batch."""
        self._inserted[method] += (after["segment_ids"] > 0).sum() - (before["segment_ids"] > 0).sum()

    def reduce(self) -> None:
        """Sum over all processes: the first one keeps the totals, the others restart; every process calls."""
        names = self._names_of_domains()
        mine = [float(self.sums.get(name, 0.0)) for name in SUMS]
        mine += [float(name in self.sums) for name in OF_TEACHING]
        mine += [float(tokens) for tokens in (self.replay_tokens, *self._inserted)]
        mine += [float(self._replayed.get(name, 0)) for name in names]
        totals = distributed.summed(mine).tolist()
        sums = dict(zip(SUMS, totals, strict=False))
        *taught, replay_tokens = totals[len(SUMS) : len(SUMS) + len(OF_TEACHING) + 1]
        counts = totals[len(SUMS) + len(OF_TEACHING) + 1 :]
        replayed = counts[len(self._inserted) :]
        self._inserted = counts[: len(self._inserted)]
        self._replayed = {name: int(tokens) for name, tokens in zip(names, replayed, strict=True) if tokens}
        self.clear()
        if distributed.is_main_process() and sums["tokens"]:
            there = dict(zip(OF_TEACHING, taught, strict=True))
            kept = [name for name in SUMS if there.get(name, 1.0)]
            self.sums = {name: sums[name] for name in kept}
            self.replay_tokens = int(replay_tokens)

    def take_inserted(self) -> list[float]:
        """Tokens that each method has inserted since they were last taken."""
        taken = [float(tokens) for tokens in self._inserted]
        self._inserted = [0.0] * len(taken)
        return taken

    def take_replayed(self) -> dict[str, int]:
        """Replayed tokens by domain since they were last taken."""
        taken, self._replayed = self._replayed, {}
        return taken

    def clear(self) -> None:
        """Restart the sums that a log point has reported."""
        self.sums, self.replay_tokens = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """The sums of an interval that is not logged yet."""
        return {"sums": {name: float(value) for name, value in self.sums.items()}, "replay_tokens": self.replay_tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.sums = dict(state["sums"])
        self.replay_tokens = state["replay_tokens"]

    def _names_of_domains(self) -> list[str]:
        """Names of all domains that may be replayed, in an order that all processes share."""
        if self.domains:
            return self.domains
        columns = 1 + distributed.highest(max((int(name) for name in self._replayed), default=-1))
        return [str(column) for column in range(columns)]
