"""The arithmetic between the two matrix products: from a chunk of logits to its loss and its gradient.

Everything works in place on the logits, in tiles of rows that fit a core's cache: on a CPU each pass over a
whole chunk goes to memory and back, and about fifteen passes are needed. On an accelerator a tile is the chunk.

Shape suffixes: C rows of a chunk, V vocabulary, K kept entries.

With p the student's softmax, p' and t those at temperature tau, and W the mass of t, the gradient on the logits
of (1 - a) CE + a tau^2 KL(t || p') is (1 - a) (p - onehot) + a tau (W p' - t).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lifelong.lm.batch import beside
from lifelong.lm.fused import fused_gradient, is_fused
from lifelong.lm.targets import CachedTarget, OnlineTarget, Target, active_targets, mixed_entries, project

TILE_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Rates:
    """Constants of all rows; `num_items` is what the sum over rows is divided by."""

    temperature: float
    num_items: float | Tensor
    logit_scale: float
    softcap: float | None


def chunk_gradient(
    logits_CV: Tensor,
    labels_C: Tensor,
    alpha_C: Tensor,
    targets: Sequence[Target],
    rates: Rates,
    sums: Tensor,
    wanted: bool,
) -> Tensor | None:
    """Gradient on what entered the soft-cap and scale, in place of the logits; None where not `wanted`.

    Args:
        logits_CV: overwritten.
        labels_C: tokens to predict.
        alpha_C: inheritance rates.
        targets: of these rows.
        rates: temperature and factors.
        sums: loss, CE and tau^2 KL, added to (float64).
        wanted: whether a gradient is.
    """
    num_rows, vocab = logits_CV.shape
    whole = logits_CV.is_cuda or is_fused(logits_CV)
    tile = num_rows if whole else max(1, TILE_ELEMENTS * torch.get_num_threads() // vocab)
    own_C1 = labels_C[:, None]
    label_logit_C = logits_CV.gather(1, own_C1).squeeze(1)
    factor = rates.logit_scale / rates.num_items
    hard_C = (1 - alpha_C) * factor
    teacher = _Teacher(targets, logits_CV, rates.temperature, alpha_C * (rates.temperature * factor))
    lse_C, tempered_lse_C = torch.empty_like(label_logit_C), torch.empty_like(label_logit_C)
    for start in range(0, num_rows, tile):
        rows = slice(start, min(start + tile, num_rows))
        student_RV = logits_CV[rows]
        slope_RV = None if rates.softcap is None or not wanted else _softcap_slope(student_RV, rates.softcap)
        lse_C[rows], tempered_lse_C[rows] = _tile(student_RV, hard_C[rows], teacher, rows)
        if slope_RV is not None:
            student_RV.mul_(slope_RV)
    ce_C = lse_C - label_logit_C
    sums[1] += ce_C.sum(dtype=torch.float64)
    if teacher.is_there:
        kl_C = (teacher.score_C + teacher.mass_C * tempered_lse_C) * rates.temperature**2
        sums[0] += ((1 - alpha_C) * ce_C + alpha_C * kl_C).sum(dtype=torch.float64)
        sums[2] += kl_C.sum(dtype=torch.float64)
    else:
        sums[0] += ((1 - alpha_C) * ce_C).sum(dtype=torch.float64)
    if not wanted:
        return None
    own_C = -hard_C if rates.softcap is None else -hard_C * _softcap_slope(label_logit_C, rates.softcap)
    logits_CV.scatter_add_(1, own_C1, own_C[:, None].to(logits_CV.dtype))
    teacher.scatter(logits_CV, rates.softcap)
    return logits_CV


def _softcap_slope(capped: Tensor, softcap: float) -> Tensor:
    return capped.div(softcap).square_().neg_().add_(1)


def _tile(student_RV: Tensor, hard_R: Tensor, teacher: _Teacher, rows: slice) -> tuple[Tensor, Tensor]:
    """The dense part of the gradient, in place of some rows' logits; log-sums at temperature 1 and tau."""
    if is_fused(student_RV) and teacher.is_plain:
        return _fused_tile(student_RV, hard_R, teacher, rows)
    weights_RV = teacher.meet(student_RV, rows)  # before the logits are overwritten
    peak_R1 = student_RV.amax(1, keepdim=True)
    student_RV.sub_(peak_R1)
    peak_R = peak_R1.squeeze(1)
    soft_R = teacher.soft_C[rows]
    if not teacher.is_there or teacher.tau == 1:  # CE and KL share one softmax
        total_R = student_RV.exp_().sum(1)
        tempered_lse_R = lse_R = peak_R + total_R.log()
        together_R = hard_R + soft_R * teacher.mass_C[rows] if teacher.is_there else hard_R
        student_RV.mul_((together_R / total_R)[:, None])
    else:
        lse_R, tempered_lse_R = _two_softmaxes(student_RV, peak_R, hard_R, soft_R * teacher.mass_C[rows], teacher.tau)
    if weights_RV is not None:
        factor_R = -soft_R if teacher.scale_R is None else -soft_R * teacher.scale_R
        student_RV.addcmul_(weights_RV, factor_R[:, None].to(student_RV.dtype))
    return lse_R, tempered_lse_R


def _fused_tile(student_RV: Tensor, hard_R: Tensor, teacher: _Teacher, rows: slice) -> tuple[Tensor, Tensor]:
    teacher_RV = None if teacher.logits_CV is None else teacher.logits_CV[rows]
    soft_R = teacher.soft_C[rows] * teacher.mass_C[rows] if teacher.is_there else None
    lse_R, tempered_lse_R, score_R = fused_gradient(student_RV, teacher_RV, hard_R, soft_R, float(teacher.tau))
    if teacher_RV is not None:
        teacher.score_C[rows] = score_R
    return lse_R, tempered_lse_R


def _two_softmaxes(
    shifted_RV: Tensor, peak_R: Tensor, hard_R: Tensor, soft_R: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """`hard * softmax(z) + soft * softmax(z / tau)` in place of z - max; log-sums at temperature 1 and tau."""
    if tau == 2:  # exp(z) is the square of exp(z / 2): one exponential instead of two
        half_RV = shifted_RV.mul_(0.5).exp_()
        total_R, tempered_R = _dot(half_RV, half_RV), half_RV.sum(1)
        factor_RV = half_RV * (hard_R / total_R)[:, None]
        half_RV.mul_(factor_RV.add_((soft_R / tempered_R)[:, None]))
    else:
        tempered_RV = shifted_RV.div(tau).exp_()
        shifted_RV.exp_()
        total_R, tempered_R = shifted_RV.sum(1), tempered_RV.sum(1)
        shifted_RV.mul_((hard_R / total_R)[:, None]).addcmul_(tempered_RV, (soft_R / tempered_R)[:, None])
    return peak_R + total_R.log(), peak_R / tau + tempered_R.log()


def _dot(one_RV: Tensor, other_RV: Tensor) -> Tensor:
    return torch.bmm(one_RV[:, None, :], other_RV[:, :, None])[:, 0, 0]


class _Teacher:
    """The teachers of a chunk: one dense distribution, or sparse entries, or nothing.

    `mass_C` is the mass of the target and `score_C` the sum of t (log t - z / tau). Entries are dealt with for the
    whole chunk at once, a dense distribution tile by tile: `meet` must see logits before they are overwritten.
    """

    def __init__(self, targets: Sequence[Target], logits_CV: Tensor, tau: float, soft_C: Tensor) -> None:
        self.tau, self.soft_C = tau, soft_C
        self.ids_CK: Tensor | None = None
        self.logits_CV: Tensor | None = None
        self.scale_R: Tensor | None = None
        targets = active_targets(targets)
        self.is_there = bool(targets)
        self.is_mixture = len(targets) > 1 or any(
            target.weight_N is not None or getattr(target, "student_ids_V", None) is not None for target in targets
        )
        online = [target for target in targets if isinstance(target, OnlineTarget)]
        cached = [target for target in targets if isinstance(target, CachedTarget)]
        self.mass_C, self.score_C = logits_CV.new_ones(len(soft_C)), logits_CV.new_zeros(len(soft_C))
        if online and not self.is_mixture:
            self.logits_CV = _dense_logits(online[0], logits_CV)
            self.num_tokens = online[0].weight_VE.shape[0]
        elif online:
            self.logits_CV = _dense_mixture(online, cached, logits_CV, tau)
        elif cached:
            self.ids_CK, values_CK = mixed_entries(cached)
            self.values_CK = values_CK.to(logits_CV.dtype)
            self.seen_CK = logits_CV.gather(1, self.ids_CK)
            self.mass_C = self.values_CK.sum(1)
            self.score_C = torch.xlogy(self.values_CK, self.values_CK).sum(1)
            self.score_C -= (self.values_CK * self.seen_CK).sum(1) / tau

    @property
    def is_plain(self) -> bool:
        """Nothing dense but one teacher's logits over the whole vocabulary."""
        return self.logits_CV is None or (not self.is_mixture and self.num_tokens == self.logits_CV.shape[1])

    def meet(self, student_RV: Tensor, rows: slice) -> Tensor | None:
        """Weights of a dense target, up to `scale_R`; notes its mass and score."""
        if self.logits_CV is None:
            return None
        teacher_RV = self.logits_CV[rows]
        if self.is_mixture:
            self.mass_C[rows] = teacher_RV.sum(1)
            self.score_C[rows] = torch.xlogy(teacher_RV, teacher_RV).sum(1) - _dot(teacher_RV, student_RV) / self.tau
            return teacher_RV
        peak_R1 = teacher_RV.amax(1, keepdim=True)
        weights_RV = (teacher_RV - peak_R1).div_(self.tau).exp_()
        total_R = weights_RV.sum(1)
        self.scale_R = 1 / total_R
        # through the difference of the logits: exact where teacher and student are close
        teacher_RV.sub_(student_RV)
        if self.num_tokens < teacher_RV.shape[1]:
            teacher_RV[:, self.num_tokens :] = 0  # padding has probability 0, and 0 times infinity is none
        distance_R = _dot(weights_RV, teacher_RV) / (self.tau * total_R)
        self.score_C[rows] = distance_R - peak_R1.squeeze(1) / self.tau - total_R.log()
        return weights_RV

    def scatter(self, gradient_CV: Tensor, softcap: float | None) -> None:
        """Take the entries off the gradient."""
        if self.ids_CK is None:
            return
        off_CK = self.values_CK * -self.soft_C[:, None]
        if softcap is not None:
            off_CK = off_CK * _softcap_slope(self.seen_CK, softcap)
        gradient_CV.scatter_add_(1, self.ids_CK, off_CK)


def _dense_logits(target: OnlineTarget, like_CV: Tensor) -> Tensor:
    """The teacher's logits in the student's columns; padding is -inf."""
    hidden_CE = target.hidden_NE.double() if like_CV.dtype == torch.float64 else target.hidden_NE
    rows, columns = target.weight_VE.shape[0], like_CV.shape[1]
    head = (target.weight_VE, target.bias_V, target.softcap, target.logit_scale)
    if rows == columns:
        return project(hidden_CE, *head)
    logits_CV = torch.empty_like(like_CV)
    logits_CV[:, rows:] = -torch.inf
    logits_CV[:, :rows] = project(hidden_CE, *head, out_CV=logits_CV[:, :rows])
    return logits_CV


def _dense_probabilities(target: OnlineTarget, like_CV: Tensor, tau: float) -> Tensor:
    """The teacher's probabilities in the student's columns; what has no place there is noted and left out."""
    if target.student_ids_V is None:
        return _dense_logits(target, like_CV).div_(tau).softmax(1)
    hidden_CE = target.hidden_NE.double() if like_CV.dtype == torch.float64 else target.hidden_NE
    own_CV = project(hidden_CE, target.weight_VE, target.bias_V, target.softcap, target.logit_scale)
    own_CV = own_CV.div_(tau).softmax(1)
    placed_V = target.student_ids_V >= 0
    columns = target.student_ids_V[placed_V]
    if target.mass is not None:
        target.mass.add(own_CV[:, ~placed_V].sum(1))
    return torch.zeros_like(like_CV).index_copy_(1, columns, own_CV[:, placed_V])


def _dense_mixture(
    online: Sequence[OnlineTarget], cached: Sequence[CachedTarget], like_CV: Tensor, tau: float
) -> Tensor:
    """The mixture of all teachers' probabilities; a teacher is projected only for rows where its weight is not 0."""
    mixed_CV = torch.zeros_like(like_CV)
    for target in online:
        if target.weight_N is None:
            mixed_CV += _dense_probabilities(target, like_CV, tau)
            continue
        rows_R = target.weight_N.nonzero()[:, 0]  # found where the weights lie, which may be the host
        if len(rows_R):
            weight_R1, rows_R = beside(target.weight_N[rows_R, None], like_CV), beside(rows_R, like_CV)
            part = replace(target, hidden_NE=target.hidden_NE[rows_R], weight_N=None)
            probabilities_RV = _dense_probabilities(part, like_CV[rows_R], tau)
            mixed_CV.index_add_(0, rows_R, probabilities_RV.mul_(weight_R1.to(like_CV.dtype)))
    if cached:
        ids_CK, values_CK = mixed_entries(list(cached))
        mixed_CV.scatter_add_(1, ids_CK, values_CK.to(like_CV.dtype))
    return mixed_CV
