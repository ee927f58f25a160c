"""Targets of a teacher for each predicted token: dense through its output embedding, or sparse from a cache.

Shape suffixes: N predicted tokens, E teacher width, V vocabulary, K kept entries, C rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lifelong.errors import InputError
from lifelong.lm.batch import beside


class MappedMass:
    """Share of a teacher's probability on tokens that have a place in the student's vocabulary.

    Sums stay on the device until they are asked for.
    """

    def __init__(self) -> None:
        self.rows, self._unmapped = 0, 0.0
        self._waiting: Tensor | None = None

    def add(self, unmapped_C: Tensor) -> None:
        """Note the mass of each row that has no place."""
        self.rows += unmapped_C.numel()
        total = unmapped_C.detach().sum(dtype=torch.float64)
        self._waiting = total if self._waiting is None else self._waiting + total

    @property
    def unmapped(self) -> float:
        """Sum over all rows so far."""
        if self._waiting is not None:
            self._unmapped += float(self._waiting)
            self._waiting = None
        return self._unmapped


@dataclass(frozen=True)
class OnlineTarget:
    """A teacher's hidden states and output embedding; its probabilities are formed chunk by chunk.

    Args:
        hidden_NE: hidden states at the predicted positions.
        weight_VE: output embedding.
        bias_V: bias of the output embedding.
        softcap: bound of tanh soft-capping (Gemma 2), or None.
        logit_scale: factor on the logits (Granite: 1 / logits_scaling).
        weight_N: weight of this target in a mixture, per token; 1 where not given. May lie on the host: it is asked
            chunk by chunk whether the teacher has a say.
        vocab_size: tokens of the vocabulary, where the embedding has more rows than that; the rest is padding
            and gets probability 0. A teacher that names it may have another number of rows than the student.
        student_ids_V: of a teacher with another vocabulary: the student's id of each of its `vocab_size` tokens, -1
            where the student has none. What the teacher says about those is left out: the target's mass is smaller.
        mass: told how large the target's mass is.
    """

    hidden_NE: Tensor
    weight_VE: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    logit_scale: float = 1.0
    weight_N: Tensor | None = None
    vocab_size: int | None = None
    student_ids_V: Tensor | None = None
    mass: MappedMass | None = None


@dataclass(frozen=True)
class CachedTarget:
    """Sparse teacher probabilities, taken at the temperature of the loss.

    Args:
        ids_NK: token ids, -1 for an empty entry.
        probabilities_NK: their (estimated) probabilities; a row need not sum to one.
        weight_N: as of an `OnlineTarget`.
        highest: largest id, where it is known; otherwise the tensor is asked.
    """

    ids_NK: Tensor
    probabilities_NK: Tensor
    weight_N: Tensor | None = None
    highest: int | None = None


Target = OnlineTarget | CachedTarget


def target_rows(target: Target, index: Any) -> Target:
    """The target of some rows only."""
    weight_N = None if target.weight_N is None else target.weight_N[index]
    if isinstance(target, CachedTarget):
        return replace(
            target, ids_NK=target.ids_NK[index], probabilities_NK=target.probabilities_NK[index], weight_N=weight_N
        )
    return replace(target, hidden_NE=target.hidden_NE[index], weight_N=weight_N)


def active_targets(targets: Sequence[Target]) -> list[Target]:
    """Those with a weight in these rows; weights that are all 1 are left out, as where one teacher has all rows."""
    active: list[Target] = []
    for target in targets:
        if target.weight_N is not None and not bool((target.weight_N != 0).any()):
            continue
        whole = target.weight_N is None or bool((target.weight_N == 1).all())
        active.append(replace(target, weight_N=None) if whole else target)
    return active


def check_target(target: Target, student_rows: int, vocab_size: int, *, checked: bool = False) -> None:
    """Refuse a target that does not speak of the student's vocabulary.

    Args:
        target: to check.
        student_rows: rows of the student's output embedding.
        vocab_size: those of them that are tokens.
        checked: a map of ids is known to be right.

    Raises:
        InputError: another vocabulary, more entries than tokens, or an id that is no token.
    """
    if isinstance(target, OnlineTarget):
        rows = target.weight_VE.shape[0]
        if target.student_ids_V is not None:
            if not checked:
                _check_map(target.student_ids_V, target.vocab_size or rows, rows, vocab_size)
            return
        if target.vocab_size is None and rows not in (student_rows, vocab_size):
            raise InputError(
                f"the teacher has a vocabulary of {rows} tokens, the student of {student_rows}; use a teacher with "
                "the student's tokenizer, or grow the smaller vocabulary; where they share the tokenizer and differ "
                "in padding, name the number of real tokens (vocab_size)"
            )
        if target.vocab_size is not None and not 0 < target.vocab_size <= min(rows, vocab_size):
            raise InputError(
                f"the teacher's vocab_size of {target.vocab_size} does not fit its {rows} rows and the student's "
                f"{vocab_size} tokens"
            )
        return
    if target.ids_NK.shape[1] > vocab_size:
        raise InputError(f"a cached target keeps {target.ids_NK.shape[1]} entries of a vocabulary of {vocab_size}")
    highest = target.highest
    if highest is None:
        highest = int(target.ids_NK.max()) if target.ids_NK.numel() else -1
    if highest >= vocab_size:
        raise InputError(
            f"a cached target names token {highest}, the student's vocabulary has {vocab_size}; "
            "the cache was written for another tokenizer"
        )


def _check_map(student_ids_V: Tensor, tokens: int, rows: int, vocab_size: int) -> None:
    if len(student_ids_V) != tokens or tokens > rows:
        raise InputError(
            f"the teacher's id map speaks of {len(student_ids_V)} tokens, its vocabulary has {tokens} in {rows} rows"
        )
    if int(student_ids_V.max()) >= vocab_size:
        raise InputError(
            f"the teacher's id map names token {int(student_ids_V.max())}, the student's vocabulary has {vocab_size}"
        )


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Matrix product with a float32 result whatever the precision of the operands (float64 stays float64)."""
    if left.dtype == right.dtype and left.is_cuda and left.dtype not in (torch.float32, torch.float64):
        return torch.mm(left, right, out_dtype=torch.float32)
    exact = torch.float64 if left.dtype == torch.float64 else torch.float32
    return torch.mm(left.to(exact), right.to(exact), out=out)


def project(
    hidden_CD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    softcap: float | None,
    logit_scale: float,
    out_CV: Tensor | None = None,
) -> Tensor:
    """Float32 logits of a chunk, accumulated in float32 also from bfloat16 (float64 stays float64)."""
    logits_CV = product(hidden_CD, weight_VD.T, out_CV)
    if bias_V is not None:
        logits_CV = logits_CV.add_(bias_V)
    if logit_scale != 1.0:
        logits_CV = logits_CV.mul_(logit_scale)
    if softcap is not None:
        logits_CV = logits_CV.div_(softcap).tanh_().mul_(softcap)
    return logits_CV


def mixed_entries(targets: list[CachedTarget]) -> tuple[Tensor, Tensor]:
    """Ids `[C, K]` and probabilities `[C, K]` of a mixture of sparse targets; no id of a row comes twice.

    Empty entries have id 0 and probability 0.
    """
    ids_CK = torch.cat([target.ids_NK for target in targets], 1).long()
    exact = torch.promote_types(targets[0].probabilities_NK.dtype, torch.float32)
    values_CK = torch.cat([_weighted(target, exact) for target in targets], 1)
    values_CK = values_CK * (ids_CK >= 0)
    ids_CK = ids_CK.clamp(min=0)
    if len(targets) == 1:
        return ids_CK, values_CK
    # a token that two teachers name: its last place in sorted order carries the sum, the others nothing
    ids_CK, order_CK = ids_CK.sort(dim=1, stable=True)
    values_CK = values_CK.gather(1, order_CK)
    ends_CK = torch.ones_like(ids_CK, dtype=torch.bool)
    ends_CK[:, :-1] = ids_CK[:, 1:] != ids_CK[:, :-1]
    group_CK = ends_CK.long().cumsum(1) - ends_CK.long()
    sums_CK = torch.zeros_like(values_CK).scatter_add_(1, group_CK, values_CK)
    return ids_CK, sums_CK.gather(1, group_CK) * ends_CK


def _weighted(target: CachedTarget, exact: torch.dtype) -> Tensor:
    values_CK = target.probabilities_NK.to(exact)
    return values_CK if target.weight_N is None else values_CK * beside(target.weight_N[:, None], values_CK).to(exact)
