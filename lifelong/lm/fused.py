"""The dense part of a chunk compiled into few passes over its logits, for training with `train.torch_compile`.

`chunk._tile` is the reference and what runs elsewhere: the last bits differ, and compiling takes up to a minute.

Shape suffixes: R rows, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_compiled: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None


@contextlib.contextmanager
def fused_tiles(backend: str | None) -> Iterator[None]:
    """While open, losses in float32 take the compiled pass; None leaves all as it is."""
    global _compiled  # noqa: PLW0603 - of a training phase
    before = _compiled
    _compiled = None if backend is None else torch.compile(dense_gradient, backend=backend)
    try:
        yield
    finally:
        _compiled = before


def is_fused(logits: Tensor) -> bool:
    """Whether the compiled pass is to be taken for these logits."""
    return _compiled is not None and logits.dtype == torch.float32


def fused_gradient(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`dense_gradient`, compiled."""
    assert _compiled is not None, "is_fused was asked"
    return _compiled(*arguments)


def dense_gradient(
    student_RV: Tensor, teacher_RV: Tensor | None, hard_R: Tensor, soft_R: Tensor | None, tau: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`hard p + soft (p' - t)` in place of the student's logits, as `chunk._tile` has it.

    Args:
        student_RV: logits, overwritten.
        teacher_RV: logits; None where there is no dense target.
        hard_R: weights of CE.
        soft_R: weights of KI, times the mass of a target that is not dense; None without a target.
        tau: temperature.

    Returns:
        Log-sums of the student at temperature 1 and tau, and the sum of t (log t - z / tau), 0 without a teacher.
    """
    peak_R1 = student_RV.amax(1, keepdim=True)
    soft_RV = (student_RV - peak_R1).div(tau).exp()
    tempered_R = soft_RV.sum(1)
    hard_RV = soft_RV if tau == 1 else (student_RV - peak_R1).exp()
    total_R = hard_RV.sum(1)
    gradient_RV = hard_RV * (hard_R / total_R)[:, None]
    score_R = torch.zeros_like(total_R)
    if soft_R is not None:
        gradient_RV = gradient_RV + soft_RV * (soft_R / tempered_R)[:, None]
    if teacher_RV is not None and soft_R is not None:
        top_R1 = teacher_RV.amax(1, keepdim=True)
        weights_RV = (teacher_RV - top_R1).div(tau).exp()
        mass_R = weights_RV.sum(1)
        # through the difference of the logits: exact where teacher and student are close
        score_R = (weights_RV * (teacher_RV - student_RV)).sum(1) / (tau * mass_R)
        score_R = score_R - top_R1.squeeze(1) / tau - mass_R.log()
        gradient_RV = gradient_RV - weights_RV * (soft_R / mass_R)[:, None]
    student_RV.copy_(gradient_RV)
    peak_R = peak_R1.squeeze(1)
    return peak_R + total_R.log(), peak_R / tau + tempered_R.log(), score_R
