"""The KI loss on hidden states: cross-entropy and distillation from one pass over chunks of tokens.

Neither the student's nor the teacher's `[N, V]` logits exist whole: a chunk of rows is projected, its
gradient is computed at once, and only gradients of hidden states and output embedding are kept.

Shape suffixes: N predicted tokens, D width, E teacher width, V vocabulary, K kept entries, C rows of a chunk.

Source: Qin et al. 2022 (arXiv 2105.13880), equation 2: L = (1 - a) CE + a tau^2 KL(P_teacher || P_student).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lifelong.errors import InputError
from lifelong.lm.batch import IGNORED
from lifelong.lm.chunk import Rates, chunk_gradient
from lifelong.lm.targets import CachedTarget, OnlineTarget, Target, check_target, product, project, target_rows

__all__ = ["IGNORED", "CachedTarget", "OnlineTarget", "Target", "ki_loss", "ki_loss_parts", "token_nats"]

# rows of a chunk times vocabulary; a buffer of float32 stays below 32 MiB on the CPU, where an allocator keeps it
CHUNK_ELEMENTS = {"cpu": 15 << 19, "cuda": 1 << 26}


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
    vocab_size: int


def default_chunk_tokens(vocab_size: int, device: torch.device) -> int:
    """Rows that are projected at a time."""
    return max(64, CHUNK_ELEMENTS.get(device.type, 1 << 23) // vocab_size)


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
    vocab_size: int | None = None,
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
        vocab_size: tokens of the student's vocabulary where the embedding has more rows; the rest is padding,
            its logits count as -inf.

    Raises:
        InputError: alpha outside [0, 1], or a teacher with another vocabulary.
    """
    return ki_loss_parts(
        hidden_ND, weight_VD, labels_N, bias_V=bias_V, targets=targets, alpha=alpha, temperature=temperature,
        num_items=num_items, chunk_tokens=chunk_tokens, softcap=softcap, logit_scale=logit_scale, vocab_size=vocab_size,
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
    vocab_size: int | None = None,
    checked: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """KI loss as `ki_loss`, with the sums of CE and of tau^2 KL over the rows, detached.

    `checked`: every row has a label and every rate is in [0, 1]; to look would be to wait for the accelerator.
    """
    targets = (targets,) if isinstance(targets, OnlineTarget | CachedTarget) else tuple(targets or ())
    exact = torch.float64 if hidden_ND.dtype == torch.float64 else torch.float32
    if not checked:
        _check(alpha, temperature)
    vocab = weight_VD.shape[0] if vocab_size is None else vocab_size
    if not 0 < vocab <= weight_VD.shape[0]:
        raise InputError(
            f"vocab_size: must be between 1 and the {weight_VD.shape[0]} rows of the embedding, not {vocab}"
        )
    for target in targets:
        check_target(target, weight_VD.shape[0], vocab, checked=checked)
    if not isinstance(alpha, Tensor) and alpha == 0:
        targets = ()
    alpha_N = torch.as_tensor(alpha, dtype=exact, device=hidden_ND.device).expand(labels_N.shape)
    if not checked and not bool((keep := labels_N != IGNORED).all()):
        hidden_ND, labels_N, alpha_N = hidden_ND[keep], labels_N[keep], alpha_N[keep]
        targets = tuple(target_rows(target, keep) for target in targets)
    chunk = chunk_tokens or default_chunk_tokens(vocab, hidden_ND.device)
    items = max(labels_N.numel(), 1) if num_items is None else num_items
    # autocast would take the student's product for another one than the teacher's (`out=` escapes it) and round logits
    targets = tuple(
        replace(target, hidden_NE=autocast_operand(target.hidden_NE)) if isinstance(target, OnlineTarget) else target
        for target in targets
    )
    hidden_ND = autocast_operand(hidden_ND)
    settings = _Settings(labels_N, alpha_N, targets, temperature, items, chunk, softcap, logit_scale, vocab)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        loss, ce, kl = _ChunkedLoss.apply(hidden_ND, weight_VD, bias_V, settings)
    return loss, ce, kl


def autocast_operand(hidden_ND: Tensor) -> Tensor:
    """Hidden states in the precision of the head's products: bfloat16 under its autocast, else as they are.

    float16 is left alone: gradients of logits are of the size of a probability over the number of tokens, which its
    range does not reach before the scaler has scaled them.
    """
    device = hidden_ND.device.type
    if hidden_ND.dtype != torch.float32 or not torch.is_autocast_enabled(device):
        return hidden_ND
    return hidden_ND.bfloat16() if torch.get_autocast_dtype(device) == torch.bfloat16 else hidden_ND


def _check(alpha: float | Tensor, temperature: float) -> None:
    low, high = (float(alpha.min()), float(alpha.max())) if isinstance(alpha, Tensor) and alpha.numel() else (0.0, 0.0)
    if not isinstance(alpha, Tensor):
        low = high = float(alpha)
    if not (low >= 0 and high <= 1):
        raise InputError(f"alpha: must be in [0, 1], not {low:g}" + (f" to {high:g}" if high != low else ""))
    if not temperature > 0:
        raise InputError(f"temperature: must be greater than 0, not {temperature:g}")


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
        vocab = settings.vocab_size
        head_VD = _projected_from(weight_VD[:vocab], hidden_ND)
        bias = None if bias_V is None else bias_V[:vocab]
        teachers = tuple(
            replace_weight(target, _projected_from(target.weight_VE[: target.vocab_size or vocab], target.hidden_NE))
            if isinstance(target, OnlineTarget)
            else target
            for target in settings.targets
        )
        items = settings.num_items
        items = items.to(exact) if isinstance(items, Tensor) else items
        rates = Rates(settings.temperature, items, settings.logit_scale, settings.softcap)
        sums = torch.zeros(3, dtype=torch.float64, device=hidden_ND.device)
        buffer_CV = hidden_ND.new_empty((min(settings.chunk_tokens, hidden_ND.shape[0]), vocab), dtype=exact)
        for start in range(0, hidden_ND.shape[0], settings.chunk_tokens):
            rows = slice(start, start + settings.chunk_tokens)
            hidden_CD = hidden_ND[rows]
            logits_CV = project(
                hidden_CD, head_VD, bias, settings.softcap, settings.logit_scale, buffer_CV[: hidden_CD.shape[0]]
            )
            parts = [target_rows(target, rows) for target in teachers]
            labels_C, alpha_C = settings.labels_N[rows], settings.alpha_N[rows]
            grad_CV = chunk_gradient(logits_CV, labels_C, alpha_C, parts, rates, sums, any(wanted))
            if grad_CV is None:
                continue
            if grad_bias is not None:
                grad_bias[:vocab] += grad_CV.sum(0)
            low_CV = grad_CV.to(hidden_CD.dtype)  # the only low-precision step: the operands of the gradient products
            if grad_hidden is not None:
                grad_hidden[rows] = product(low_CV, head_VD)
            if grad_weight is not None:
                if low_CV.dtype == grad_weight.dtype:
                    grad_weight[:vocab].addmm_(low_CV.T, hidden_CD)
                else:
                    grad_weight[:vocab] += product(low_CV.T, hidden_CD)
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
        # what is kept is never changed: the graph may be walked again (gradcheck, retain_graph); where nothing is to
        # be scaled it is handed on without a copy (asking an accelerator would mean waiting for it)
        if upstream.device.type == "cpu" and float(upstream) == 1.0:
            return (*ctx.gradients, None)
        return (*(None if g is None else g * upstream.to(g.dtype) for g in ctx.gradients), None)


def replace_weight(target: OnlineTarget, weight_VE: Tensor) -> OnlineTarget:
    """The target with its real tokens' rows alone, in the precision it is projected in."""
    bias_V = None if target.bias_V is None else target.bias_V[: weight_VE.shape[0]]
    return replace(target, weight_VE=weight_VE, bias_V=bias_V)


def _projected_from(weight_VD: Tensor, hidden_ND: Tensor) -> Tensor:
    """The embedding as it enters the projection, of the precision of the hidden states.

    On the CPU low precision is raised once and not chunk by chunk: most have no units for its products.
    """
    low_VD = weight_VD.to(hidden_ND.dtype)
    if hidden_ND.is_cuda or hidden_ND.dtype in (torch.float32, torch.float64):
        return low_VD
    return low_VD.float()


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
    temperature: float = 1.0,
) -> Tensor:
    """Negative log-likelihood of every label, `[N]` float32 nats; no `[N, V]` logits are formed."""
    hidden_ND = autocast_operand(hidden_ND)
    chunk = chunk_tokens or default_chunk_tokens(weight_VD.shape[0], hidden_ND.device)
    weight_VD = _projected_from(weight_VD, hidden_ND)
    nats_N = torch.empty(labels_N.shape, dtype=torch.float32, device=hidden_ND.device)
    for start in range(0, labels_N.numel(), chunk):
        rows = slice(start, start + chunk)
        logits_CV = project(hidden_ND[rows], weight_VD, bias_V, softcap, logit_scale)
        if temperature != 1.0:
            logits_CV.div_(temperature)
        nats_N[rows] = logits_CV.logsumexp(1) - logits_CV.gather(1, labels_N[rows][:, None]).squeeze(1)
    return nats_N


@torch.no_grad()
def token_uncertainty(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Entropy of every prediction over the largest possible, log V: `[N]` in [0, 1]; no `[N, V]` logits are formed."""
    hidden_ND = autocast_operand(hidden_ND)
    chunk = chunk_tokens or default_chunk_tokens(weight_VD.shape[0], hidden_ND.device)
    weight_VD = _projected_from(weight_VD, hidden_ND)
    found_N = torch.empty(hidden_ND.shape[0], dtype=torch.float32, device=hidden_ND.device)
    for start in range(0, hidden_ND.shape[0], chunk):
        rows = slice(start, start + chunk)
        log_CV = project(hidden_ND[rows], weight_VD, bias_V, softcap, logit_scale).log_softmax(1)
        found_N[rows] = -(log_CV.exp() * log_CV).nan_to_num_(0.0).sum(1) / math.log(weight_VD.shape[0])
    return found_N.clamp_(0.0, 1.0)
