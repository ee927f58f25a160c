"""The KI loss on hidden states: cross-entropy and distillation from one pass over chunks of tokens.

Neither the student's nor the teacher's `[N, V]` logits exist whole: a chunk of rows is projected, its
gradient is computed at once, and only gradients of hidden states and output embedding are kept.

Letters: N predicted tokens, D width, E teacher width, V vocabulary, K kept entries, C rows of a chunk.

Source: Qin et al. 2022 (arXiv 2105.13880), equation 2: L = (1 - a) CE + a tau^2 KL(P_teacher || P_student).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lifelong.errors import InputError

IGNORED = -100
CHUNK_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class OnlineTarget:
    """A teacher's hidden states and output embedding; its probabilities are formed chunk by chunk.

    Args:
        hidden_NE: hidden states at the predicted positions.
        weight_VE: output embedding.
        bias_V: bias of the output embedding.
        softcap: bound of tanh soft-capping (Gemma 2), or None.
        logit_scale: factor on the logits (Granite: 1 / logits_scaling).
        weight_N: weight of this target in a mixture, per token; 1 where not given.
    """

    hidden_NE: Tensor
    weight_VE: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    logit_scale: float = 1.0
    weight_N: Tensor | None = None


@dataclass(frozen=True)
class CachedTarget:
    """Sparse teacher probabilities, taken at the temperature of the loss.

    Args:
        ids_NK: token ids, -1 for an empty entry.
        probabilities_NK: their (estimated) probabilities; a row need not sum to one.
        weight_N: weight of this target in a mixture, per token; 1 where not given.
    """

    ids_NK: Tensor
    probabilities_NK: Tensor
    weight_N: Tensor | None = None


Target = OnlineTarget | CachedTarget


@dataclass(frozen=True)
class _Settings:
    labels_N: Tensor
    alpha_N: Tensor
    targets: tuple[Target, ...]
    temperature: float
    num_items: float | Tensor
    chunk_tokens: int
    softcap: float | None
    logit_scale: float


def ki_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    targets: Sequence[Target] | Target | None = None,
    alpha: float | Tensor = 0.0,
    temperature: float = 1.0,
    num_items: int | Tensor | None = None,
    chunk_tokens: int | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Tensor:
    """The scalar loss, differentiable once in `hidden_ND`, `weight_VD` and `bias_V`.

    Args:
        hidden_ND: student's hidden states.
        weight_VD: student's output embedding.
        labels_N: token to predict at each row; -100 rows are left out before the head is applied.
        bias_V: bias of the output embedding.
        targets: one teacher's targets or a mixture of several, rows aligned with `labels_N`.
        alpha: inheritance rate in [0, 1], one for all or one per row `[N]`.
        temperature: tau, on both sides of the KL term.
        num_items: what the sum over tokens is divided by: the predicted tokens of the whole optimizer step.
        chunk_tokens: rows projected at a time; chosen by the vocabulary where not given.
        softcap: bound of tanh soft-capping of the student's logits.
        logit_scale: factor on the student's logits.

    Raises:
        InputError: alpha outside [0, 1], or a teacher with another vocabulary.
    """
    return ki_loss_parts(
        hidden_ND, weight_VD, labels_N, bias_V=bias_V, targets=targets, alpha=alpha, temperature=temperature,
        num_items=num_items, chunk_tokens=chunk_tokens, softcap=softcap, logit_scale=logit_scale,
    )[0]  # fmt: skip


def ki_loss_parts(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    targets: Sequence[Target] | Target | None = None,
    alpha: float | Tensor = 0.0,
    temperature: float = 1.0,
    num_items: int | Tensor | None = None,
    chunk_tokens: int | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Like `ki_loss`, with the sums of CE and of tau^2 KL over the rows, detached."""
    targets = (targets,) if isinstance(targets, (OnlineTarget, CachedTarget)) else tuple(targets or ())
    exact = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
    alpha_N = torch.as_tensor(alpha, dtype=exact, device=hidden_ND.device).expand(labels_N.shape)
    _check(weight_VD, alpha_N, targets, temperature)
    keep = labels_N != IGNORED
    if not bool(keep.all()):
        hidden_ND, labels_N, alpha_N = hidden_ND[keep], labels_N[keep], alpha_N[keep]
        targets = tuple(_rows(target, keep) for target in targets)
    chunk = chunk_tokens or max(64, CHUNK_ELEMENTS // weight_VD.shape[0])
    items = max(labels_N.numel(), 1) if num_items is None else num_items
    settings = _Settings(labels_N, alpha_N, targets, temperature, items, chunk, softcap, logit_scale)
    loss, ce, kl = _ChunkedLoss.apply(hidden_ND, weight_VD, bias_V, settings)
    return loss, ce, kl


def _check(weight_VD: Tensor, alpha_N: Tensor, targets: Sequence[Target], temperature: float) -> None:
    if alpha_N.numel() and (float(alpha_N.min()) < 0 or float(alpha_N.max()) > 1):
        raise InputError(f"alpha: lies in [0, 1], not {float(alpha_N.min()):g} to {float(alpha_N.max()):g}")
    if temperature <= 0:
        raise InputError(f"temperature: is greater than 0, not {temperature:g}")
    for target in targets:
        if isinstance(target, OnlineTarget) and target.weight_VE.shape[0] != weight_VD.shape[0]:
            raise InputError(
                f"the teacher has a vocabulary of {target.weight_VE.shape[0]} tokens, the student of "
                f"{weight_VD.shape[0]}; use a teacher with the student's tokenizer, or grow the smaller vocabulary"
            )


def _rows(target: Target, index: Any) -> Target:
    weight_N = None if target.weight_N is None else target.weight_N[index]
    if isinstance(target, CachedTarget):
        return CachedTarget(target.ids_NK[index], target.probabilities_NK[index], weight_N)
    hidden = target.hidden_NE[index]
    return OnlineTarget(hidden, target.weight_VE, target.bias_V, target.softcap, target.logit_scale, weight_N)


def project(
    hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, softcap: float | None, logit_scale: float
) -> Tensor:
    """Float32 logits of a chunk, accumulated in float32 also from bfloat16 (float64 stays float64)."""
    if hidden_CD.dtype == torch.float64:
        logits_CV = hidden_CD @ weight_VD.double().T
    elif hidden_CD.is_cuda and hidden_CD.dtype != torch.float32 and weight_VD.dtype == hidden_CD.dtype:
        logits_CV = torch.mm(hidden_CD, weight_VD.T, out_dtype=torch.float32)
    else:
        logits_CV = hidden_CD.float() @ weight_VD.float().T
    if bias_V is not None:
        logits_CV = logits_CV.add_(bias_V)
    if logit_scale != 1.0:
        logits_CV = logits_CV.mul_(logit_scale)
    if softcap is not None:
        logits_CV = logits_CV.div_(softcap).tanh_().mul_(softcap)
    return logits_CV


class _ChunkedLoss(torch.autograd.Function):
    """Loss and gradients in one pass; backward only scales what forward has kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, settings: _Settings
    ) -> tuple[Tensor, Tensor, Tensor]:
        exact = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
        wanted = [
            need and tensor is not None
            for need, tensor in zip(ctx.needs_input_grad[:3], (hidden_ND, weight_VD, bias_V), strict=True)
        ]
        grad_hidden = torch.empty_like(hidden_ND) if wanted[0] else None
        grad_weight = torch.zeros_like(weight_VD, dtype=exact) if wanted[1] else None
        grad_bias = torch.zeros_like(weight_VD[:, 0], dtype=exact) if wanted[2] else None
        sums = torch.zeros(3, dtype=torch.float64, device=hidden_ND.device)
        for start in range(0, hidden_ND.shape[0], settings.chunk_tokens):
            rows = slice(start, start + settings.chunk_tokens)
            hidden_CD = hidden_ND[rows]
            logits_CV = project(hidden_CD, weight_VD, bias_V, settings.softcap, settings.logit_scale)
            slope_CV = None if settings.softcap is None else 1 - (logits_CV / settings.softcap) ** 2
            grad_CV = _chunk_gradient(logits_CV, settings, rows, sums, any(wanted))
            if grad_CV is None:
                continue
            if slope_CV is not None:
                grad_CV.mul_(slope_CV)
            grad_CV.div_(settings.num_items)
            if settings.logit_scale != 1.0:
                grad_CV.mul_(settings.logit_scale)
            if grad_bias is not None:
                grad_bias += grad_CV.sum(0)
            low_CV = grad_CV.to(hidden_CD.dtype)  # the only low-precision step: the gradient products
            if grad_hidden is not None:
                grad_hidden[rows] = low_CV @ weight_VD.to(low_CV.dtype)
            if grad_weight is not None:
                if low_CV.dtype == grad_weight.dtype:
                    grad_weight.addmm_(low_CV.T, hidden_CD)
                else:
                    grad_weight += low_CV.T @ hidden_CD
        ctx.gradients = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight_VD.dtype),
            None if grad_bias is None or bias_V is None else grad_bias.to(bias_V.dtype),
        )
        ce, kl = sums[1].clone(), sums[2].clone()
        ctx.mark_non_differentiable(ce, kl)
        return (sums[0] / settings.num_items).to(exact), ce, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        # out of place: the graph may be walked again (gradcheck, retain_graph)
        gradients = [None if g is None else g * upstream.to(g.dtype) for g in ctx.gradients]
        return (*gradients, None)


def _chunk_gradient(logits_CV: Tensor, settings: _Settings, rows: slice, sums: Tensor, wanted: bool) -> Tensor | None:
    """Add this chunk's loss, CE and KL to `sums`; give the gradient on its logits. Works in place."""
    labels_C, alpha_C = settings.labels_N[rows], settings.alpha_N[rows].to(logits_CV.dtype)
    own_C1 = labels_C[:, None]
    label_logit_C = logits_CV.gather(1, own_C1).squeeze(1)
    taught = bool(settings.targets) and bool((alpha_C > 0).any())
    tau = settings.temperature
    tempered_CV = logits_CV / tau if taught and tau != 1 else logits_CV
    lse_C = logits_CV.logsumexp(1)
    ce_C = lse_C - label_logit_C
    kl_C = torch.zeros_like(ce_C)
    tempered_lse_C = lse_C
    if taught:
        tempered_lse_C = lse_C if tau == 1 else tempered_CV.logsumexp(1)
        mixed_CV, mass_C, kl_C = _teacher_term(tempered_CV, tempered_lse_C, settings, rows)
        kl_C = kl_C * tau * tau
    sums[1] += ce_C.sum(dtype=torch.float64)
    sums[2] += kl_C.sum(dtype=torch.float64)
    sums[0] += ((1 - alpha_C) * ce_C + alpha_C * kl_C).sum(dtype=torch.float64)
    if not wanted:
        return None
    grad_CV = (logits_CV - lse_C[:, None]).exp_()
    if not taught:
        return grad_CV.scatter_add_(1, own_C1, -torch.ones_like(label_logit_C)[:, None]).mul_((1 - alpha_C)[:, None])
    hard_C = 1 - alpha_C
    if tau == 1:  # CE and KL share one softmax
        grad_CV.mul_((hard_C + alpha_C * mass_C)[:, None])
    else:
        grad_CV.mul_(hard_C[:, None])
        soft_CV = tempered_CV.sub_(tempered_lse_C[:, None]).exp_()
        grad_CV.add_(soft_CV.mul_((tau * alpha_C * mass_C)[:, None]))
    grad_CV.scatter_add_(1, own_C1, -hard_C[:, None])
    return grad_CV.sub_(mixed_CV.mul_((tau * alpha_C)[:, None]))


def _teacher_term(
    tempered_CV: Tensor, lse_C: Tensor, settings: _Settings, rows: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """The mixed teacher distribution, its mass per row, and KL(teacher || student) at temperature tau."""
    mixed_CV: Tensor | None = None
    for target in settings.targets:
        part = _rows(target, rows)
        if isinstance(part, OnlineTarget):
            hidden = part.hidden_NE.to(torch.float64) if tempered_CV.dtype == torch.float64 else part.hidden_NE
            probabilities_CV = project(hidden, part.weight_VE, part.bias_V, part.softcap, part.logit_scale)
            probabilities_CV = probabilities_CV.div_(settings.temperature).softmax(1)
        else:
            probabilities_CV = torch.zeros_like(tempered_CV)
            present = part.ids_NK >= 0
            values = part.probabilities_NK.to(tempered_CV.dtype) * present
            probabilities_CV.scatter_add_(1, part.ids_NK.clamp(min=0).long(), values)
        if part.weight_N is not None:
            probabilities_CV = probabilities_CV.mul_(part.weight_N[:, None].to(tempered_CV.dtype))
        mixed_CV = probabilities_CV if mixed_CV is None else mixed_CV.add_(probabilities_CV)
    assert mixed_CV is not None, "a taught row has a target"
    mass_C = mixed_CV.sum(1)
    kl_C = torch.xlogy(mixed_CV, mixed_CV).sum(1) - torch.linalg.vecdot(mixed_CV, tempered_CV) + mass_C * lse_C
    return mixed_CV, mass_C, kl_C


@torch.no_grad()
def token_nats(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Negative log-likelihood of every label, `[N]` float32 nats; no `[N, V]` logits are formed."""
    chunk = chunk_tokens or max(64, CHUNK_ELEMENTS // weight_VD.shape[0])
    nats_N = torch.empty(labels_N.shape, dtype=torch.float32, device=hidden_ND.device)
    for start in range(0, labels_N.numel(), chunk):
        rows = slice(start, start + chunk)
        logits_CV = project(hidden_ND[rows], weight_VD, bias_V, softcap, logit_scale)
        nats_N[rows] = logits_CV.logsumexp(1) - logits_CV.gather(1, labels_N[rows][:, None]).squeeze(1)
    return nats_N
