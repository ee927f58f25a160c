"""The stream: stages in order, each with its domain and its token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lifelong.errors import InputError
from lifelong.stream.domain import Domain


@dataclass(frozen=True)
class Stage:
    """Position `index` of a stream: `tokens` of a domain. `name` is the folder of the stage, `01-news`."""

    index: int
    domain: Domain
    tokens: int

    @property
    def name(self) -> str:
        """Two digits of the position and the domain's name."""
        return f"{self.index:02d}-{self.domain.name}"


class DomainStream(Sequence[Stage]):
    """Stages in order. A domain may come back later: it keeps its column.

    Raises:
        InputError: no stage, a budget that is not positive, or two different cards of one name.
    """

    def __init__(self, stages: Sequence[tuple[Domain, int]]) -> None:
        if not stages:
            raise InputError("stages: a stream needs at least one stage")
        cards: dict[str, Domain] = {}
        for index, (domain, tokens) in enumerate(stages):
            if tokens <= 0:
                raise InputError(f"stages.{index}.tokens: {tokens} is not a positive number of tokens")
            if cards.setdefault(domain.name, domain) != domain:
                raise InputError(
                    f"stages.{index}.domain: {domain.path} and {cards[domain.name].path} "
                    f"are different domains of the same name {domain.name!r}"
                )
        self._stages = [Stage(index, domain, tokens) for index, (domain, tokens) in enumerate(stages)]
        self.domains = tuple(cards.values())

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Names in the order they are first met: the columns of the loss matrix."""
        return tuple(domain.name for domain in self.domains)

    @property
    def columns(self) -> dict[str, int]:
        """Domain name to its column."""
        return {name: column for column, name in enumerate(self.domain_names)}

    @property
    def total_tokens(self) -> int:
        """Sum of the budgets."""
        return sum(stage.tokens for stage in self._stages)

    def __len__(self) -> int:
        return len(self._stages)

    def __getitem__(self, index: int) -> Stage:  # type: ignore[override]
        return self._stages[index]

    def __iter__(self) -> Iterator[Stage]:
        return iter(self._stages)
