"""Interface of a teacher to the loss, and the inputs it is built and checked from.

Shape suffixes: B sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.errors import UnknownNameError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lifelong.lm.loss import Target
    from lifelong.stream.tokenizers.merged import MergedTokenizers

Batch = Mapping[str, "Tensor"]


@dataclass
class TeacherCost:
    """Tokens that teachers have been run on, and the FLOPs of that.

    `mapped` is of teachers with other vocabularies: predicted tokens that they taught, and their probability that has
    no place in the student's vocabulary, summed over these.
    """

    tokens: int = 0
    flops: float = 0.0
    mapped: dict[str, tuple[int, float]] = field(default_factory=dict)

    def __add__(self, other: TeacherCost) -> TeacherCost:
        mapped = dict(self.mapped)
        for name, (rows, mass) in other.mapped.items():
            before = mapped.get(name, (0, 0.0))
            mapped[name] = (before[0] + rows, before[1] + mass)
        return TeacherCost(self.tokens + other.tokens, self.flops + other.flops, mapped)


class Teacher:
    """Targets for the labelled rows of the sequences it is shown; by default all of them, and no model runs."""

    @property
    def cost(self) -> TeacherCost:
        """Cost of the teacher so far."""
        return TeacherCost()

    def teaches(self, batch: Batch) -> NDArray[np.bool_] | None:
        """Which sequences it has something to say about, `[B]` on the host; None for all."""
        del batch
        return None

    def targets(self, batch: Batch) -> Sequence[Target]:
        """Targets whose rows are the predicted tokens of `batch`, in order."""
        raise NotImplementedError

    def attend(self, batch: Batch) -> None:
        """Take part without teaching `batch`, where the teachers of other processes need this one to run theirs."""

    def shard(self, wrap: Callable[[Any], Any]) -> None:
        """Let every process hold a part of each parameter only, as `wrap` does it to a model."""

    def model_for(self, domain_id: int) -> Any:
        """The one model that teaches a domain in the student's ids; None where there is no such one."""
        del domain_id

    def close(self) -> None:
        """Free what the teacher holds; it is not asked again."""


@dataclass(frozen=True)
class TeacherInputs:
    """Inputs from which the teacher of a stage is built.

    Args:
        temperature: both distributions are softened by it.
        domain: name of the stage's domain.
        student: the model of the stage, at its size.
        previous: folder of the previous stage's model; None where no model has learned anything.
        previous_fingerprint: of its weights.
        previous_revision: of it on the hub, where it is the checkpoint that the run starts from.
        objective: clm or mlm.
        sequence_length: tokens of a row.
        columns: names of the stream's domains, by domain id.
        tokenizer: of the student.
        merged: the tokenizers of the domains, where vocabularies were merged.
        seed: of the stage.
        num_steps: optimizer steps of the stage.
        heldout_nats: loss of a model on held-out text of the domain with this name, nats per token.
        stored: caches of the targets of memory blocks.
        unstored: domains of the memory whose targets are in none of them.
    """

    temperature: float
    domain: str
    student: PreTrainedModel
    previous: Path | str | None
    previous_fingerprint: str | None
    objective: str
    sequence_length: int
    columns: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    merged: MergedTokenizers | None
    seed: int
    num_steps: int
    heldout_nats: Callable[[PreTrainedModel, str], float]
    stored: Sequence[Path] = ()
    unstored: Sequence[str] = ()
    previous_revision: str | None = None


@dataclass(frozen=True)
class Given:
    """Facts known of a run before it starts.

    Args:
        temperature: both distributions are softened by it.
        until: share of a stage after which nobody teaches, or `surpassed`.
        domains: names of the stages' domains; None where a card cannot be read.
        objective: clm or mlm.
        sequence_length: tokens of a row.
        on: which tokens are taught.
        has_memory: whether anything is replayed.
    """

    temperature: float
    until: float | str
    domains: Sequence[str] | None
    objective: str
    sequence_length: int
    on: str = "all"
    has_memory: bool = False


def unknown_domains(named: Iterable[str], domains: Sequence[str], where: str) -> Iterator[UnknownNameError]:
    """An error for each domain that is named and is none of the stream's."""
    for name in named:
        if name not in domains:
            yield UnknownNameError("domain of this stream", name, domains, where)
