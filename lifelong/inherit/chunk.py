"""The arithmetic between the two matrix products: from a chunk of logits to its loss and its gradient.

Everything works in place on the logits, in tiles of rows that fit a core's cache: on a CPU each pass over a
whole chunk goes to memory and back, and about fifteen passes are needed. On an accelerator a tile is the chunk.

Letters: C rows of a chunk, V vocabulary, K kept entries.

With p the student's softmax, p' and t those at temperature tau, and W the mass of t, the gradient on the logits
of (1 - a) CE + a tau^2 KL(t || p') is (1 - a) (p - onehot) + a tau (W p' - t).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lifelong.inherit.targets import (
    CachedTarget,
    OnlineTarget,
    Target,
    active_targets,
    mixed_entries,
    project,
    target_rows,
)

TILE_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Rates:
    """What is the same for all rows; `num_items` is what the sum over rows is divided by."""

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
    tile = num_rows if logits_CV.is_cuda else max(1, TILE_ELEMENTS * torch.get_num_threads() // vocab)
    teacher = _Teacher(targets, logits_CV, rates.temperature)
    for start in range(0, num_rows, tile):
        rows = slice(start, min(start + tile, num_rows))
        student_RV, labels_R, alpha_R = logits_CV[rows], labels_C[rows], alpha_C[rows]
        slope_RV = None if rates.softcap is None or not wanted else _softcap_slope(student_RV, rates.softcap)
        ce_R, kl_R = _tile(student_RV, labels_R, alpha_R, teacher, rows, rates)
        sums[0] += ((1 - alpha_R) * ce_R + alpha_R * kl_R).sum(dtype=torch.float64)
        sums[1] += ce_R.sum(dtype=torch.float64)
        sums[2] += kl_R.sum(dtype=torch.float64)
        if slope_RV is not None:
            student_RV.mul_(slope_RV)
    return logits_CV if wanted else None


def _softcap_slope(capped_RV: Tensor, softcap: float) -> Tensor:
    return capped_RV.div(softcap).square_().neg_().add_(1)


def _tile(
    student_RV: Tensor, labels_R: Tensor, alpha_R: Tensor, teacher: _Teacher, rows: slice, rates: Rates
) -> tuple[Tensor, Tensor]:
    """CE and tau^2 KL of some rows; their logits become their gradient."""
    tau, factor = rates.temperature, rates.logit_scale / rates.num_items
    own_R1 = labels_R[:, None]
    label_logit_R = student_RV.gather(1, own_R1).squeeze(1)
    hard_R = 1 - alpha_R
    # what the teacher weighs the student's logits with; the logits are overwritten next
    mass_R, score_R = teacher.meet(student_RV, rows)
    peak_R1 = student_RV.amax(1, keepdim=True)
    student_RV.sub_(peak_R1)
    peak_R = peak_R1.squeeze(1)
    if mass_R is None or score_R is None:
        total_R = student_RV.exp_().sum(1)
        student_RV.mul_((hard_R * factor / total_R)[:, None])
        ce_R, kl_R = peak_R + total_R.log() - label_logit_R, torch.zeros_like(label_logit_R)
    else:
        soft_R = alpha_R * (tau * factor)
        if tau == 1:  # CE and KL share one softmax
            total_R = student_RV.exp_().sum(1)
            tempered_lse_R = lse_R = peak_R + total_R.log()
            student_RV.mul_(((hard_R * factor + soft_R * mass_R) / total_R)[:, None])
        else:
            lse_R, tempered_lse_R = _two_softmaxes(student_RV, peak_R, hard_R * factor, soft_R * mass_R, tau)
        ce_R = lse_R - label_logit_R
        kl_R = (score_R + mass_R * tempered_lse_R) * (tau * tau)
        teacher.subtract(student_RV, soft_R, rows)
    student_RV.scatter_add_(1, own_R1, -(hard_R * factor)[:, None].to(student_RV.dtype))
    return ce_R, kl_R


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

    `meet` must see a tile's logits before they are overwritten, `subtract` comes after.
    """

    def __init__(self, targets: Sequence[Target], like_CV: Tensor, tau: float) -> None:
        self.tau = tau
        self.ids_CK: Tensor | None = None
        self.logits_CV: Tensor | None = None
        self.weights_RV: Tensor | None = None
        self.scale_R: Tensor | None = None
        targets = active_targets(targets)
        self.is_mixture = len(targets) > 1 or any(target.weight_N is not None for target in targets)
        online = [target for target in targets if isinstance(target, OnlineTarget)]
        cached = [target for target in targets if isinstance(target, CachedTarget)]
        if online and not self.is_mixture:
            self.logits_CV = _dense_logits(online[0], like_CV)
            self.num_tokens = online[0].weight_VE.shape[0]
        elif online:
            self.logits_CV = _dense_mixture(online, cached, like_CV, tau)
        elif cached:
            self.ids_CK, values_CK = mixed_entries(cached)
            self.values_CK = values_CK.to(like_CV.dtype)

    def meet(self, student_RV: Tensor, rows: slice) -> tuple[Tensor | None, Tensor | None]:
        """Mass of the target, and sum of t (log t - z / tau); None where nobody teaches."""
        if self.ids_CK is not None:
            values_RK = self.values_CK[rows]
            seen_RK = student_RV.gather(1, self.ids_CK[rows])
            score_R = torch.xlogy(values_RK, values_RK).sum(1) - (values_RK * seen_RK).sum(1) / self.tau
            return values_RK.sum(1), score_R
        if self.logits_CV is None:
            return None, None
        teacher_RV = self.logits_CV[rows]
        if self.is_mixture:
            self.weights_RV = teacher_RV
            score_R = torch.xlogy(teacher_RV, teacher_RV).sum(1) - _dot(teacher_RV, student_RV) / self.tau
            return teacher_RV.sum(1), score_R
        peak_R1 = teacher_RV.amax(1, keepdim=True)
        self.weights_RV = (teacher_RV - peak_R1).div_(self.tau).exp_()
        total_R = self.weights_RV.sum(1)
        self.scale_R = 1 / total_R
        # sum of t (log t - z / tau), through the difference of the logits: exact where the two are close
        teacher_RV.sub_(student_RV)
        if self.num_tokens < teacher_RV.shape[1]:
            teacher_RV[:, self.num_tokens :] = 0  # padding has probability 0, and 0 times infinity is none
        distance_R = _dot(self.weights_RV, teacher_RV) / (self.tau * total_R)
        return torch.ones_like(total_R), distance_R - peak_R1.squeeze(1) / self.tau - total_R.log()

    def subtract(self, gradient_RV: Tensor, soft_R: Tensor, rows: slice) -> None:
        """Take `soft` times the target off the gradient."""
        if self.ids_CK is not None:
            gradient_RV.scatter_add_(1, self.ids_CK[rows], -soft_R[:, None] * self.values_CK[rows])
            return
        assert self.weights_RV is not None, "`meet` comes first"
        factor_R = -soft_R if self.scale_R is None else -soft_R * self.scale_R
        gradient_RV.addcmul_(self.weights_RV, factor_R[:, None].to(gradient_RV.dtype))


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


def _dense_mixture(
    online: Sequence[OnlineTarget], cached: Sequence[CachedTarget], like_CV: Tensor, tau: float
) -> Tensor:
    """The mixture of all teachers' probabilities; a teacher is projected only for rows where its weight is not 0."""
    mixed_CV = torch.zeros_like(like_CV)
    for target in online:
        if target.weight_N is None:
            mixed_CV += _dense_logits(target, like_CV).div_(tau).softmax(1)
            continue
        active = target.weight_N != 0
        if bool(active.any()):
            part = target_rows(target, active)
            assert isinstance(part, OnlineTarget), "rows keep their kind"
            assert part.weight_N is not None, "rows keep their weights"
            probabilities_RV = _dense_logits(part, like_CV[active]).div_(tau).softmax(1)
            mixed_CV[active] += probabilities_RV.mul_(part.weight_N[:, None].to(like_CV.dtype))
    if cached:
        ids_CK, values_CK = mixed_entries(list(cached))
        mixed_CV.scatter_add_(1, ids_CK, values_CK.to(like_CV.dtype))
    return mixed_CV
