"""`memory`, the word alone: targets that are stored with the blocks of the replay memory.

Those of self-generated text are kept while it is sampled. Those of text that was kept are written once at the start of
a stage where the stage reads each block more than once; otherwise the previous model teaches these blocks as they come,
which is then cheaper. Rows of the stage's own text are not taught.

Source: the unbiased sampler of `inherit.sparse`. A draw that is stored is seen at every visit, so that its noise does
not average out over visits as that of fresh draws does: tau is divided by their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lifelong.inherit.settings import PREVIOUS, InheritSection, TeacherSection
from lifelong.inherit.teachers._teacher import Batch, Given, Teacher, TeacherCost, TeacherInputs
from lifelong.lm.objective import objective_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lifelong.inherit.cache import TargetCache
    from lifelong.lm.loss import Target

TAU, SMALLEST_TAU = 1 / 20, 1 / 250
WHERE = "inherit.teacher: memory"


@dataclass(frozen=True)
class Visits:
    """How often a stage reads a token of the memory while it is taught: of text that was `kept`, and of `generated`."""

    kept: float
    generated: float

    @property
    def stores_kept(self) -> bool:
        """Whether writing targets of kept text once is cheaper than a teacher that runs at every visit."""
        return self.kept > 1


def visits(inherit: InheritSection, replayed: float, kept: Mapping[str, float], generated: float) -> Visits:
    """Visits of a stage, where every domain of the memory is replayed alike.

    Args:
        inherit: of the recipe.
        replayed: tokens that the stage replays.
        kept: tokens in the memory, by domain.
        generated: tokens of self-generated text.
    """
    span = 1.0 if inherit.schedule == "constant" else inherit.last_progress
    each = replayed * span / max(1, len(kept) + bool(generated))
    return Visits(
        each * len(kept) / total if (total := sum(kept.values())) else 0.0, each / generated if generated else 0.0
    )


def tau_of(number: float) -> float:
    """Threshold of the sampler for targets that are read so often."""
    return max(SMALLEST_TAU, TAU / max(1.0, number))


class Plugin(TeacherSection):
    """Targets of memory blocks."""

    place: ClassVar[int] = 4
    alone: ClassVar[bool] = True

    memory: Literal[True]

    def written(self) -> Any:
        """The word alone."""
        return "memory"

    def reads_memory(self) -> bool:
        """It does."""
        return True

    def check(self, given: Given) -> Iterator[str]:
        """What a run must have for it."""
        if not given.has_memory:
            yield f"{WHERE}: nothing is replayed; add replay: {{memory_tokens: 200k}}, or replay: {{generate: ...}}"
        if given.on == "new":
            yield f"{WHERE}: knows targets of replayed text alone, but `on: new` teaches the other; name `on: replay`"
        if not objective_of(given.objective).is_causal:
            yield (
                f"{WHERE}: a masked model predicts other tokens at every visit, and stored targets would know few of "
                "them; take `teacher: previous`"
            )
        if given.until == "surpassed":
            yield (
                "inherit.until: `surpassed` needs a model to compare the student with, stored targets have none; give "
                "a share of the stage instead"
            )

    def build(self, inputs: TeacherInputs, domains: Sequence[str]) -> Teacher | None:
        """What is stored, and the previous model for the rest; None where nothing is in the memory yet."""
        parts: list[tuple[Teacher, list[str]]] = []
        if inputs.stored:
            parts.append((_stored(inputs), [name for name in domains if name not in inputs.unstored]))
        online = TeacherSection.model_validate(PREVIOUS).build(inputs, domains) if inputs.unstored else None
        if online is not None:
            parts.append((online, list(inputs.unstored)))
        if len(parts) < 2:
            return MemoryTeacher(parts[0][0]) if parts else None
        import torch

        from lifelong.inherit.teachers._weighted import MixtureTeacher, weights_by_domain

        table_DJ = torch.tensor([[float(name in named) for _, named in parts] for name in inputs.columns])
        return MemoryTeacher(
            MixtureTeacher([teacher for teacher, _ in parts], weights_by_domain(table_DJ), inputs.objective)
        )


def _stored(inputs: TeacherInputs) -> StoredTeacher:
    from lifelong.inherit.cache import TargetCache

    return StoredTeacher([TargetCache(folder) for folder in inputs.stored])


class StoredTeacher(Teacher):
    """Targets that lie in several caches; a block that all of them lack is an error."""

    def __init__(self, caches: Sequence[TargetCache]) -> None:
        self.caches = caches

    def targets(self, batch: Batch) -> Sequence[Target]:
        """The sparse targets of the batch's blocks."""
        from lifelong.inherit.cache import block_keys, cached_target, read_all

        ids_NK, probabilities_NK, _ = read_all(self.caches, block_keys(batch))
        return [cached_target(ids_NK, probabilities_NK, batch)]


class MemoryTeacher(Teacher):
    """Another teacher, of replayed rows alone."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    @property
    def cost(self) -> TeacherCost:
        """Of the other."""
        return self.teacher.cost

    def teaches(self, batch: Batch) -> NDArray[np.bool_]:
        """Replayed sequences."""
        from lifelong.lm.batch import on_host

        teaches_B, replayed_B = self.teacher.teaches(batch), on_host(batch, "is_replay")
        return replayed_B if teaches_B is None else replayed_B & teaches_B

    def targets(self, batch: Batch) -> Sequence[Target]:
        """Of the other."""
        return self.teacher.targets(batch)

    def attend(self, batch: Batch) -> None:
        """The other does."""
        self.teacher.attend(batch)

    def shard(self, wrap: Callable[[Any], Any]) -> None:
        """The other."""
        self.teacher.shard(wrap)

    def close(self) -> None:
        """Free the other."""
        self.teacher.close()
