"""The bridge to Flower, and the only file that imports it; it is installed separately.

    pip install 'lifelong[federated]'

Flower carries messages, waits for silos, and averages; what a silo does with weights and what the server does with
the average is given to these apps from outside. What a silo sends is made in one place, `_reply`: weights by the
names that it was sent, its name, and numbers. Of an error only its kind leaves the silo, because a message may quote
text; `DisagreementError` is the one that is meant to be read on the other side.
"""

from __future__ import annotations

import importlib.util
import logging
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lifelong.errors import InputError, LifelongError, UnknownNameError

Weights = dict[str, NDArray[Any]]
"""Parameters by name."""
Figures = dict[str, float]
"""What was counted and measured."""
Settings = Mapping[str, "str | int | float"]
"""What the server tells every silo with the weights."""

WEIGHTS, SETTINGS, FIGURES, SILO = "arrays", "config", "metrics", "silo"
WEIGHED_BY = "tokens"
WEIGHT_BOUND = 3.0  # times the median tokens of a round: more than that a silo cannot claim to weigh
STRATEGIES = {
    "fedavg": "FedAvg", "fedavgm": "FedAvgM", "fedadam": "FedAdam", "fedadagrad": "FedAdagrad", "fedyogi": "FedYogi",
    "fedmedian": "FedMedian", "fedtrimmedavg": "FedTrimmedAvg",
}  # fmt: skip
"""Flower's strategies by their names in small letters."""
_MEMORIES = ("m_t", "v_t", "momentum_vector")

logger = logging.getLogger("lifelong.federation")


class DisagreementError(InputError):
    """A silo cannot take part; the message names no text and may leave it."""


class Silo(Protocol):
    """A participant that holds text and trains on it."""

    @property
    def domain(self) -> str:
        """Name of its domain."""

    def train(self, weights: Weights, settings: Settings) -> tuple[Weights, Figures]:
        """Local steps from `weights`; the figures hold `tokens`, by which the average is weighed."""

    def evaluate(self, weights: Weights, settings: Settings) -> Figures:
        """Held-out loss of `weights`; the figures hold `tokens`."""


_Work = Callable[[Silo, Weights, Settings], "tuple[Weights | None, Figures]"]


def require_flower() -> None:
    """Raise where Flower is not installed."""
    if importlib.util.find_spec("flwr") is None:
        raise InputError("federation: Flower is not installed; pip install 'lifelong[federated]' (Python >= 3.11)")


# --- the silo's side ----------------------------------------------------------------------------------------


def make_client_app(open_silo: Callable[[Mapping[str, Any]], Silo]) -> Any:
    """A Flower ClientApp around a silo, which is opened from the node's own configuration for every message."""
    require_flower()
    from flwr.clientapp import ClientApp

    app = ClientApp()

    def handle(message: Any, context: Any, work: _Work) -> Any:
        from flwr.app import Error, Message

        try:
            silo = open_silo(dict(context.node_config))
            weights = _weights_of(message.content[WEIGHTS])
            trained, figures = work(silo, weights, dict(message.content[SETTINGS]))
            return Message(_reply(silo.domain, trained, figures), reply_to=message)
        except DisagreementError as error:
            logger.error("%s", error)
            return Message(Error(0, f"silo {_name_of(context.node_config)}: {error}"), reply_to=message)
        except Exception as error:  # a silo that fails misses a round; it must not take Flower's process with it
            logger.exception("this silo's work on a message failed")
            reason = f"{type(error).__name__} in silo {_name_of(context.node_config)}; its own log says more"
            return Message(Error(0, reason), reply_to=message)

    def train(message: Any, context: Any) -> Any:
        return handle(message, context, lambda silo, weights, settings: silo.train(weights, settings))

    def evaluate(message: Any, context: Any) -> Any:
        return handle(message, context, lambda silo, weights, settings: (None, silo.evaluate(weights, settings)))

    app.train()(train)
    app.evaluate()(evaluate)
    return app


def _name_of(node: Mapping[str, Any]) -> str:
    """The card's name without the folders of the silo's machine."""
    return Path(str(node.get("domain", "?"))).stem


def _reply(domain: str, weights: Weights | None, figures: Figures) -> Any:
    """All that leaves a silo."""
    from flwr.app import ConfigRecord, MetricRecord, RecordDict

    numbers = {name: float(value) if name != WEIGHED_BY else int(value) for name, value in figures.items()}
    records: dict[str, Any] = {FIGURES: MetricRecord(numbers), SILO: ConfigRecord({"domain": domain})}
    if weights is not None:
        records[WEIGHTS] = _arrays_of(weights)
    return RecordDict(records)


def _arrays_of(weights: Weights) -> Any:
    from flwr.app import Array, ArrayRecord

    # FedAvgM pairs arrays by their place, not by their name
    return ArrayRecord({name: Array(array) for name, array in sorted(weights.items())})


def _weights_of(arrays: Any) -> Weights:
    return {name: array.numpy() for name, array in arrays.items()}


# --- the server's side --------------------------------------------------------------------------------------


@dataclass
class Round:
    """A finished round: the weights after it, and what each silo said, by domain.

    `number` counts from 1 over the whole federation; `memories` is what the strategy remembers besides weights.
    """

    number: int
    weights: Weights
    trained: dict[str, Figures] = field(default_factory=dict)
    evaluated: dict[str, Figures] = field(default_factory=dict)
    memories: Weights = field(default_factory=dict)


@dataclass(frozen=True)
class Terms:
    """Terms of a federation: how the server averages and waits.

    Attributes:
        strategy: a name in `STRATEGIES`.
        options: of the strategy, by Flower's own names, for example `{"server_momentum": 0.9}`.
        silos: that must be there before the first round.
        min_silos: that must be there for a round to begin.
        timeout: seconds after which a round continues without silos that have not answered.
        domains: whose silos take part; what others send is left out. All, where none is named.
    """

    silos: int
    strategy: str = "fedavg"
    options: Mapping[str, float] = field(default_factory=dict)
    min_silos: int = 1
    timeout: float = 3600.0
    domains: tuple[str, ...] = ()


class Federation:
    """Rounds over a Flower grid by one of Flower's strategies."""

    def __init__(self, grid: Any, terms: Terms) -> None:
        self.grid, self.terms = grid, terms
        self._trained: dict[str, Figures] = {}
        self._evaluated: dict[str, Figures] = {}

    def gather(self, weights: Weights, settings: Settings) -> dict[str, Figures]:
        """The first meeting: all silos evaluate `weights`.

        Raises:
            InputError: a silo does not agree or fails, or two say they are the same.
        """
        from flwr.app import ConfigRecord

        everyone = make_strategy(replace(self.terms, min_silos=self.terms.silos))
        messages = everyone.configure_evaluate(0, _arrays_of(weights), ConfigRecord(dict(settings)), self.grid)
        replies = list(self.grid.send_and_receive(messages, timeout=self.terms.timeout))
        failed = [str(reply.error.reason) for reply in replies if reply.has_error()]
        if failed or len(replies) < self.terms.silos:
            failed += [f"{self.terms.silos - len(replies)} did not answer"] if len(replies) < self.terms.silos else []
            raise InputError(
                f"federation: {len(failed)} of {self.terms.silos} silos cannot start\n  " + "\n  ".join(failed)
            )
        found = [_figures_of(reply.content) for reply in replies]
        names = [name for name, _ in found]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"federation: several silos hold domain {twice[0]!r}; each domain has one silo")
        return dict(found)

    def run(
        self,
        weights: Weights,
        settings: Settings,
        *,
        rounds: int,
        done: int = 0,
        looks: Collection[int] = (),
        memories: Weights | None = None,
        finished: Callable[[Round], None],
    ) -> Weights:
        """Rounds `done + 1` to `rounds`; returns the last average.

        Args:
            weights: to begin with.
            settings: told to every silo with them.
            rounds: of the whole federation.
            done: rounds that were finished before.
            looks: rounds after which the silos evaluate the average.
            memories: of the strategy after round `done`.
            finished: called after every round.

        Raises:
            LifelongError: a round to which no silo contributed.
        """
        from flwr.app import ConfigRecord

        strategy = make_strategy(self.terms, self._keep, self._keep, {look - done for look in looks})
        restore_memories(strategy, memories or {})
        self._trained, self._evaluated = {}, {}

        def after(number: int, arrays: Any) -> None:
            if number == 0:
                return
            if not self._trained:
                raise LifelongError(
                    f"federation: no silo contributed to round {done + number} within {self.terms.timeout:g} s; the "
                    "reasons are above. The same run resumes from the previous round"
                )
            average = _weights_of(arrays)
            finished(Round(done + number, average, self._trained, self._evaluated, kept_memories(strategy)))
            self._trained, self._evaluated = {}, {}

        told = {**settings, "rounds-before": done, "rounds": rounds}
        result = strategy.start(
            self.grid,
            _arrays_of(weights),
            num_rounds=rounds - done,
            timeout=self.terms.timeout,
            train_config=ConfigRecord(dict(told)),
            evaluate_config=ConfigRecord(dict(told)),
            evaluate_fn=after,
        )
        return _weights_of(result.arrays) if rounds > done else weights

    def _keep(self, contents: Sequence[Any], _weighed_by: str) -> Any:
        """Every silo's figures before Flower averages them away."""
        from flwr.app import MetricRecord

        for content in contents:
            domain, figures = _figures_of(content)
            (self._trained if content.array_records else self._evaluated)[domain] = figures
        return MetricRecord({"silos": len(contents)})


def _figures_of(content: Any) -> tuple[str, Figures]:
    return str(content[SILO]["domain"]), {name: float(value) for name, value in content[FIGURES].items()}


def make_strategy(
    terms: Terms, train_figures: Any = None, evaluate_figures: Any = None, looks: Collection[int] | None = None
) -> Any:
    """One of Flower's strategies; it evaluates after the rounds in `looks`, or after all.

    Raises:
        InputError: unknown strategy or option.
    """
    require_flower()
    from flwr.serverapp import strategy as strategies

    if terms.strategy not in STRATEGIES:
        raise UnknownNameError("strategy", terms.strategy, STRATEGIES)
    base: Any = getattr(strategies, STRATEGIES[terms.strategy])

    class Spaced(base):  # type: ignore[misc]
        """The strategy, silent where no evaluation is due."""

        def configure_evaluate(self, server_round: int, *rest: Any) -> Any:
            return super().configure_evaluate(server_round, *rest) if looks is None or server_round in looks else []

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            return super().aggregate_train(server_round, believed(list(replies), terms.domains))

        def aggregate_evaluate(self, server_round: int, replies: Any) -> Any:
            return super().aggregate_evaluate(server_round, [r for r in replies if _is_invited(r, terms.domains)])

    Spaced.__name__ = base.__name__
    least = max(1, terms.min_silos)
    try:
        return Spaced(
            min_train_nodes=least,
            min_evaluate_nodes=least,
            min_available_nodes=least,
            weighted_by_key=WEIGHED_BY,
            train_metrics_aggr_fn=train_figures,
            evaluate_metrics_aggr_fn=evaluate_figures,
            **terms.options,
        )
    except TypeError as error:
        raise InputError(f"strategy {terms.strategy}: {error}") from None


def believed(replies: list[Any], domains: Collection[str]) -> list[Any]:
    """The replies of a round of training that are averaged, none of them with the weight of a whole federation.

    Left out are silos that nobody invited, a second one of a domain, and weights that are not finite; the tokens by
    which the others are weighed count up to `WEIGHT_BOUND` times the median of the round.
    """
    taken: dict[str, Any] = {}
    for reply in replies:
        if reply.has_error():
            taken[f"error {len(taken)}"] = reply
        elif _is_invited(reply, domains) and _is_sound(reply):
            taken.setdefault(_figures_of(reply.content)[0], reply)
    answers = [reply for reply in taken.values() if not reply.has_error()]
    if answers:
        bound = WEIGHT_BOUND * statistics.median(float(reply.content[FIGURES][WEIGHED_BY]) for reply in answers)
        for reply in answers:
            if (claimed := reply.content[FIGURES][WEIGHED_BY]) > bound:
                logger.warning("silo %s: %s tokens count as %d", _figures_of(reply.content)[0], claimed, bound)
                reply.content[FIGURES][WEIGHED_BY] = int(bound)
    return list(taken.values())


def _is_invited(reply: Any, domains: Collection[str]) -> bool:
    if reply.has_error() or not domains or (name := _figures_of(reply.content)[0]) in domains:
        return True
    logger.warning("silo %r is not one of the federation's (%s): left out", name, ", ".join(domains))
    return False


def _is_sound(reply: Any) -> bool:
    name, figures = _figures_of(reply.content)
    finite = all(np.isfinite(array).all() for array in _weights_of(reply.content[WEIGHTS]).values())
    if finite and 0 < figures[WEIGHED_BY] < np.inf:
        return True
    logger.warning("silo %r sent weights or a number of tokens that cannot be: left out", name)
    return False


def kept_memories(strategy: Any) -> Weights:
    """State of a strategy from round to round besides the weights, as arrays by name."""
    kept: Weights = {}
    for name in _MEMORIES:
        value = getattr(strategy, name, None)
        parts = value.items() if isinstance(value, Mapping) else enumerate(value or ())
        kept |= {f"{name}/{key}": array for key, array in parts}
    return kept


def restore_memories(strategy: Any, kept: Weights) -> None:
    """Inverse of `kept_memories`."""
    for name in _MEMORIES:
        parts = {key.split("/", 1)[1]: array for key, array in kept.items() if key.startswith(f"{name}/")}
        if parts:
            in_order = [parts[str(place)] for place in range(len(parts))] if "0" in parts else parts
            setattr(strategy, name, in_order)


def make_server_app(lead: Callable[[Mapping[str, Any], Callable[[Terms], Federation]], None]) -> Any:
    """A Flower ServerApp; `lead` gets the run's configuration, and makes a federation when it knows the terms."""
    require_flower()
    from flwr.serverapp import ServerApp

    app = ServerApp()

    def main(grid: Any, context: Any) -> None:
        lead(dict(context.run_config), lambda terms: Federation(grid, terms))

    app.main()(main)
    return app


# --- a rehearsal in one process -----------------------------------------------------------------------------


def simulation_grid(
    app: Any, nodes: Sequence[Mapping[str, Any]], absent: Callable[[str, int], bool] | None = None
) -> Any:
    """A Flower grid whose silos are called one after the other in this process; no port, no other process.

    Args:
        app: the ClientApp.
        nodes: configuration of each silo, as it would be given to `flower-supernode --node-config`.
        absent: (domain, round) -> whether that silo does not answer in that round.
    """
    require_flower()
    from flwr.app import Context, RecordDict
    from flwr.serverapp import Grid
    from flwr.supercore.task_identity import TaskIdentity

    # Flower's own processes set these; a message cannot be made without
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 0, 0, 0

    class RehearsalGrid(Grid):  # type: ignore[misc]
        """Messages are handed over as Flower objects."""

        run = None

        def set_run(self, run: Any) -> None:
            """There is none."""

        def create_message(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError("deprecated by Flower; messages are made by their constructor")

        def get_node_ids(self) -> list[int]:
            return list(range(1, len(nodes) + 1))

        def push_messages(self, messages: Any) -> list[str]:
            raise NotImplementedError("a rehearsal answers at once: send_and_receive")

        def pull_messages(self, message_ids: Any) -> list[Any]:
            raise NotImplementedError("a rehearsal answers at once: send_and_receive")

        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Any]:
            del timeout
            replies = []
            for message in sorted(messages, key=lambda message: int(message.metadata.dst_node_id)):
                number = int(message.metadata.dst_node_id)
                node = dict(nodes[number - 1])
                settings = message.content[SETTINGS]
                round_ = int(settings["server-round"]) + int(settings.get("rounds-before", 0))
                if absent is None or not absent(_name_of(node), round_):
                    context = Context(run_id=0, node_id=number, node_config=node, state=RecordDict(), run_config={})
                    replies.append(app(message, context))
            return replies

    return RehearsalGrid()
