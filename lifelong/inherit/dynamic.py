"""Dynamic distillation: how strongly a sequence is taught follows the student, who teaches it the teachers.

The rate of a sequence is the schedule's, times the student's uncertainty about it: the mean entropy of its predictions
over the largest that a vocabulary allows, a number in [0, 1]. It is read off the student's own forward pass, inside the
loss head, so that only the projection to the vocabulary is computed twice; it depends on the sequence alone, on no mean
over a batch, so that no split of a step changes it and nothing has to be kept for a resumption. As the student becomes
sure of what it reads the teacher fades by itself.

Where several teachers have a weight on a sequence, the most competent one teaches it alone: the one that gives the
largest mean probability to its tokens. Unlike their log-likelihood this is linear in the probabilities, so that stored
targets from an unbiased sampler give it without bias.

Source: Li et al. 2021, Dynamic Knowledge Distillation (EMNLP, arXiv 2109.11295), sections 3 to 5; there the student's
entropy chooses the teacher too, and by rank in a batch.

Shape suffixes: B sequences, N predicted tokens, J teachers, K kept entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lifelong.lm.batch import beside
from lifelong.lm.head import sequence_means
from lifelong.lm.loss import CachedTarget, OnlineTarget, Target, token_nats


def most_competent(targets: Sequence[Target], labels_N: Tensor, sequence_N: Tensor, temperature: float) -> list[Target]:
    """The targets with weights 0 and 1: each sequence has the most competent of those that have a weight on it.

    Args:
        targets: a mixture, rows aligned with `labels_N`.
        labels_N: tokens to predict.
        sequence_N: sequence of each row.
        temperature: of the loss, at which cached probabilities were taken.
    """
    sequences = int(sequence_N.max()) + 1 if len(sequence_N) else 0
    scores_JB = torch.stack([_competence(target, labels_N, sequence_N, sequences, temperature) for target in targets])
    chosen_N = scores_JB.argmax(0)[sequence_N].cpu()  # of equals the first; asked once, and not by every chunk
    return [replace(target, weight_N=(chosen_N == place).to(torch.float32)) for place, target in enumerate(targets)]


def _competence(target: Target, labels_N: Tensor, sequence_N: Tensor, sequences: int, temperature: float) -> Tensor:
    """Mean probability of the tokens of each sequence, `[B]`; -1 where the target has no weight on it."""
    known_N = label_probabilities(target, labels_N, temperature)
    weight_N = torch.ones_like(known_N)
    if target.weight_N is not None:
        weight_N = beside(target.weight_N > 0, known_N).to(known_N.dtype)
    has_weight_B = known_N.new_zeros(sequences).index_add_(0, sequence_N, weight_N) > 0
    mean_B = sequence_means(known_N, sequence_N, sequences)
    return torch.where(has_weight_B, mean_B, -1.0)


@torch.no_grad()
def label_probabilities(target: Target, labels_N: Tensor, temperature: float = 1.0) -> Tensor:
    """Probability of every label by a target, `[N]`; 0 where it has no place for it."""
    if isinstance(target, CachedTarget):
        return (target.probabilities_NK.float() * (target.ids_NK == labels_N[:, None])).sum(1)
    ids_N = _own_ids(target, labels_N)
    tokens = target.vocab_size or target.weight_VE.shape[0]
    nats_N = token_nats(
        target.hidden_NE, target.weight_VE[:tokens], ids_N.clamp(0, tokens - 1),
        bias_V=None if target.bias_V is None else target.bias_V[:tokens],
        softcap=target.softcap, logit_scale=target.logit_scale, temperature=temperature,
    )  # fmt: skip
    return torch.exp(-nats_N) * ((ids_N >= 0) & (ids_N < tokens))


def _own_ids(target: OnlineTarget, labels_N: Tensor) -> Tensor:
    """The teacher's ids of the student's labels; -1 where it has none."""
    if target.student_ids_V is None:
        return labels_N
    ids_V = target.student_ids_V.to(labels_N.device)
    own = torch.full((int(max(ids_V.max(), labels_N.max())) + 1,), -1, dtype=torch.long, device=labels_N.device)
    own[ids_V[ids_V >= 0]] = torch.arange(len(ids_V), device=labels_N.device)[ids_V >= 0]
    return own[labels_N]
