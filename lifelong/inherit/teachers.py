"""Who teaches: every teacher gives targets for the labelled rows of the sequences it is shown.

Letters: B sequences, T tokens, N predicted tokens, V vocabulary, J teachers, K kept entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lifelong.errors import InputError
from lifelong.inherit.cache import TargetCache, block_keys
from lifelong.lm.head import at_the_head, head_settings, predicted_rows
from lifelong.lm.loss import CachedTarget, OnlineTarget, Target, default_chunk_tokens
from lifelong.lm.packed import packing_of
from lifelong.lm.targets import project

Batch = Mapping[str, Tensor]


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


class Teacher(Protocol):
    """What the loss needs of a teacher."""

    @property
    def cost(self) -> TeacherCost:
        """So far."""

    def teaches(self, batch: Batch) -> Tensor:
        """Which sequences it has something to say about, `[B]` bool."""

    def targets(self, batch: Batch) -> Sequence[Target]:
        """Targets whose rows are the predicted tokens of `batch`, in order."""

    def attend(self, batch: Batch) -> None:
        """Not asked about `batch`: take part where the teachers of other processes need this one to run theirs."""

    def shard(self, wrap: Callable[[Any], Any]) -> None:
        """Let every process hold a part of each parameter only, as `wrap` does it to a model."""

    def close(self) -> None:
        """Free what the teacher holds; it is not asked again."""


class OnlineTeacher:
    """A frozen model that runs beside the student, in evaluation mode and with the same packing mask.

    Args:
        model: the teacher.
        objective: clm or mlm.
        vocab_size: tokens of its vocabulary, where its embedding has more rows than the student's, or fewer.
        flops_per_token: of its forward pass, for the cost ledger.
    """

    def __init__(
        self, model: Any, objective: str, *, vocab_size: int | None = None, flops_per_token: float = 0.0
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.objective, self.vocab_size, self.flops_per_token = objective, vocab_size, flops_per_token
        self.cost = TeacherCost()
        self.is_sharded = False

    def teaches(self, batch: Batch) -> Tensor:
        """All of them."""
        return torch.ones_like(batch["input_ids"][:, 0], dtype=torch.bool)

    def targets(self, batch: Batch) -> Sequence[Target]:
        """One online target; the head is applied later, chunk by chunk, to labelled rows only."""
        num_tokens = batch["input_ids"].numel()
        self.cost.tokens += num_tokens
        self.cost.flops += num_tokens * self.flops_per_token
        return [self._run(batch)]

    @torch.no_grad()
    def _run(self, batch: Batch) -> OnlineTarget:
        device = batch["input_ids"].device
        if not self.is_sharded and next(self.model.parameters()).device != device:
            self.model.to(device)

        def target(hidden_BTD: Tensor) -> OnlineTarget:
            settings = head_settings(self.model)
            if self.is_sharded:  # the whole output embedding is there inside the forward only
                settings = {k: v.clone() if isinstance(v, Tensor) else v for k, v in settings.items()}
            hidden_NE, _, _ = predicted_rows(hidden_BTD, batch["labels"], self.objective)
            return OnlineTarget(hidden_NE, settings.pop("weight_VD"), vocab_size=self.vocab_size, **settings)

        return at_the_head(self.model, batch, self.objective, target)

    def attend(self, batch: Batch) -> None:
        """Where every process holds a part of the model, it runs in all of them or in none: here on one sequence."""
        if self.is_sharded:
            self._run({name: tensor[:1] for name, tensor in batch.items()})

    def shard(self, wrap: Callable[[Any], Any]) -> None:
        """Hold a part of each parameter only."""
        packing_of(self.model, self.objective)  # found out by a trial, which needs the whole model
        self.model, self.is_sharded = wrap(self.model), True

    def close(self) -> None:
        """Drop the model."""
        self.model = None


def block_probabilities(teacher: OnlineTeacher, batch: Batch, temperature: float) -> Iterator[Iterator[Tensor]]:
    """For each row of a batch, the teacher's probabilities at its predicted tokens, `[n, V]` float32 at a time."""
    (target,) = teacher.targets(batch)
    assert isinstance(target, OnlineTarget), "an online teacher has an online target"
    vocab = target.vocab_size or target.weight_VE.shape[0]
    weight_VE = target.weight_VE[:vocab].float()
    bias_V = None if target.bias_V is None else target.bias_V[:vocab].float()
    chunk = default_chunk_tokens(vocab, weight_VE.device)

    def of_row(hidden_NE: Tensor) -> Iterator[Tensor]:
        for part_CE in torch.split(hidden_NE, chunk):
            logits_CV = project(part_CE.float(), weight_VE, bias_V, target.softcap, target.logit_scale)
            yield logits_CV.div_(temperature).softmax(1)

    _, _, sequence_N = predicted_rows(batch["labels"][..., None], batch["labels"], teacher.objective)
    for row in range(batch["input_ids"].shape[0]):
        yield of_row(target.hidden_NE[sequence_N == row])


class CachedTeacher:
    """Targets of a cache on disk; no model runs.

    Args:
        cache: the cache.
        tokenizer: fingerprint of the student's tokenizer.
        temperature: tau of the loss.
        objective: clm or mlm.
        sequence_length: of the run.
        teacher: fingerprint of the model that the cache must be of, where that is known.

    Raises:
        InputError: the cache was written for another tokenizer, temperature, objective, length or teacher.
    """

    def __init__(
        self,
        cache: TargetCache | Path,
        *,
        tokenizer: str,
        temperature: float,
        objective: str,
        sequence_length: int,
        teacher: str | None = None,
    ) -> None:
        self.cache = cache if isinstance(cache, TargetCache) else TargetCache(cache)
        self.objective = objective
        self.cost = TeacherCost()
        self._check(tokenizer, temperature, objective, sequence_length, teacher)

    def _check(
        self, tokenizer: str, temperature: float, objective: str, sequence_length: int, teacher: str | None
    ) -> None:
        there, folder = self.cache.settings, self.cache.folder
        if there.tokenizer != tokenizer:
            raise InputError(
                f"{folder}: the cache is of another tokenizer (fingerprint {there.tokenizer[:12]}, the student's is "
                f"{tokenizer[:12]}); write it with `lifelong cache --tokenizer` of the run"
            )
        if teacher is not None and there.teacher != teacher:
            raise InputError(
                f"{folder}: the cache is of another model (fingerprint {there.teacher[:12]}, the teacher named for it "
                f"has {teacher[:12]}); write it again from that model"
            )
        for name, mine, unit in (
            ("temperature", temperature, "--temperature"),
            ("objective", objective, "--objective"),
            ("sequence_length", sequence_length, "--sequence-length"),
        ):
            if getattr(there, name) != mine:
                raise InputError(
                    f"{folder}: the cache was written with {name} {getattr(there, name)}, the run has {mine}; write it "
                    f"with `lifelong cache {unit} {mine}`"
                )

    def teaches(self, batch: Batch) -> Tensor:
        """All of them: a block that the cache lacks is an error, and no reason to teach less in silence."""
        return torch.ones_like(batch["input_ids"][:, 0], dtype=torch.bool)

    def targets(self, batch: Batch) -> Sequence[Target]:
        """The sparse targets of the batch's blocks."""
        ids_NK, probabilities_NK, _ = self.cache.read(block_keys(batch))
        device = batch["input_ids"].device
        return [CachedTarget(torch.from_numpy(ids_NK).to(device), torch.from_numpy(probabilities_NK).to(device))]

    def attend(self, batch: Batch) -> None:
        """Nothing runs."""

    def shard(self, wrap: Callable[[Any], Any]) -> None:
        """There are no parameters."""

    def close(self) -> None:
        """Nothing is held."""


class MixtureTeacher:
    """Several teachers, mixed in probability space by weights of each sequence; only those with a weight run.

    Routing to the teacher of a sequence's domain is the mixture whose weights are 0 and 1.

    Args:
        teachers: J of them.
        weigh: weights `[B, J]` of a batch, not negative; a row is scaled to sum to one, a row of zeros is not
            taught.
        objective: clm or mlm.
    """

    def __init__(self, teachers: Sequence[Teacher], weigh: Callable[[Batch], Tensor], objective: str) -> None:
        self.teachers, self.weigh, self.objective = list(teachers), weigh, objective
        self.is_sharded = False

    @property
    def cost(self) -> TeacherCost:
        """Of all of them together."""
        return sum((teacher.cost for teacher in self.teachers), TeacherCost())

    def _weights(self, batch: Batch) -> Tensor:
        weights_BJ = self.weigh(batch)
        if bool((weights_BJ < 0).any()) or not bool(weights_BJ.isfinite().all()):
            raise InputError(f"weights of a mixture of teachers are numbers >= 0, not {weights_BJ.tolist()}")
        return weights_BJ / weights_BJ.sum(1, keepdim=True).clamp(min=torch.finfo(weights_BJ.dtype).tiny)

    def teaches(self, batch: Batch) -> Tensor:
        """Sequences with any weight."""
        return (self._weights(batch) > 0).any(1)

    def targets(self, batch: Batch) -> Sequence[Target]:
        """Targets of the active teachers; one is shown only the sequences that it has a weight for."""
        weights_BJ = self._weights(batch)
        labels_BT = batch["labels"]
        _, _, sequence_N = predicted_rows(labels_BT[..., None], labels_BT, self.objective)
        found: list[Target] = []
        for index, teacher in enumerate(self.teachers):
            active_B = weights_BJ[:, index] > 0
            if not bool(active_B.any()):
                if self.is_sharded:
                    teacher.attend(batch)
                continue
            rows_N = active_B[sequence_N]
            weight_N = weights_BJ[sequence_N, index]
            shown = {name: tensor[active_B] for name, tensor in batch.items()}
            found += [_spread(target, rows_N, weight_N) for target in teacher.targets(shown)]
        return found

    def attend(self, batch: Batch) -> None:
        """All of them."""
        for teacher in self.teachers:
            teacher.attend(batch)

    def shard(self, wrap: Callable[[Any], Any]) -> None:
        """All of them."""
        self.is_sharded = True
        for teacher in self.teachers:
            teacher.shard(wrap)

    def close(self) -> None:
        """Free all of them."""
        for teacher in self.teachers:
            teacher.close()
        self.teachers = []


def _spread(target: Target, rows_N: Tensor, weight_N: Tensor) -> Target:
    """A target of some rows as one of all rows; the others have weight 0."""
    if target.weight_N is not None:
        weight_N = weight_N.clone()
        weight_N[rows_N] = weight_N[rows_N] * target.weight_N
    if bool(rows_N.all()):
        return replace(target, weight_N=weight_N)
    if isinstance(target, CachedTarget):
        shape = (len(rows_N), target.ids_NK.shape[1])
        ids_NK, probabilities_NK = target.ids_NK.new_full(shape, -1), target.probabilities_NK.new_zeros(shape)
        ids_NK[rows_N], probabilities_NK[rows_N] = target.ids_NK, target.probabilities_NK
        return CachedTarget(ids_NK, probabilities_NK, weight_N)
    hidden_NE = target.hidden_NE.new_zeros(len(rows_N), target.hidden_NE.shape[1])
    hidden_NE[rows_N] = target.hidden_NE
    return replace(target, hidden_NE=hidden_NE, weight_N=weight_N)


def weights_by_domain(table_DJ: Tensor) -> Callable[[Batch], Tensor]:
    """Weights of a mixture by the column of a sequence's domain.

    Args:
        table_DJ: for every domain of the stream, weights of the teachers.
    """

    def weigh(batch: Batch) -> Tensor:
        return table_DJ.to(batch["domain_ids"].device)[batch["domain_ids"]]

    return weigh
