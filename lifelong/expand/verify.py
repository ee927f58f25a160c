"""How far the function moved, measured on the models themselves.

The libraries cast norms, softmax and rotary tables to float32 even in a double-precision model, which hides
anything below 1e-6. `true_float64` makes those casts harmless while it is open.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lifelong.expand.plan import ExpansionPlan
from lifelong.records import ExpansionReport

TOLERANCE = 1e-10
VERIFY_SEED = 1234
NUM_SEQUENCES, NUM_TOKENS = 2, 24


@contextmanager
def true_float64() -> Iterator[None]:
    """While open, `torch.float32` means float64 and `Tensor.float()` keeps double precision."""
    float32, to_float = torch.float32, Tensor.float
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.float32 = torch.float = torch.float64
    Tensor.float = Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.float32 = torch.float = float32
        Tensor.float = to_float  # type: ignore[method-assign]
        torch.set_default_dtype(default)


@torch.no_grad()
def logits_of(model: Any, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits of a copy of `model` in `dtype`, in evaluation mode; exact double precision for float64."""
    twin = copy.deepcopy(model).eval().to(device="cpu", dtype=dtype)
    if dtype != torch.float64:
        low: Tensor = twin(input_ids=ids_BT).logits
        return low.float()
    with true_float64():
        exact: Tensor = twin(input_ids=ids_BT).logits
    return exact


def verify(small: Any, grown: Any, exact: Any, plan: ExpansionPlan) -> ExpansionReport:
    """Compare both models on random tokens in three precisions.

    `exact` is the grown model with float64 weights: a weight scaled by sqrt(D/d) and stored in float32 moves
    the logits by float32 rounding, which says nothing about the map. Only the logits of the old vocabulary are
    compared: new tokens have nothing to be compared with.
    """
    generator = torch.Generator().manual_seed(VERIFY_SEED)
    positions = getattr(small.config, "max_position_embeddings", NUM_TOKENS)
    vocab = plan.source["vocab_size"]
    ids_BT = torch.randint(0, vocab, (NUM_SEQUENCES, min(NUM_TOKENS, positions)), generator=generator)
    difference = {}
    pairs = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        larger = exact if dtype == torch.float64 else grown
        before, after = logits_of(small, ids_BT, dtype), logits_of(larger, ids_BT, dtype)[..., :vocab]
        pairs[dtype] = before, after
        difference[dtype] = float((after - before).abs().max())
    before, after = pairs[torch.float64]
    log_p, log_q = before.log_softmax(-1), after.log_softmax(-1)
    scale = max(1.0, float(before.abs().max()))
    return ExpansionReport(
        family=plan.family.name,
        mode=plan.mode,
        source=dict(plan.source),
        target=dict(plan.target),
        parameters_before=sum(p.numel() for p in small.parameters()),
        parameters_after=sum(p.numel() for p in grown.parameters()),
        max_logit_difference_float64=difference[torch.float64],
        max_logit_difference_float32=difference[torch.float32],
        max_logit_difference_bfloat16=difference[torch.bfloat16],
        kl_divergence=float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
        top1_agreement=float((before.argmax(-1) == after.argmax(-1)).double().mean()),
        tolerance=TOLERANCE * scale,
        passed=plan.mode != "exact" or difference[torch.float64] <= TOLERANCE * scale,
    )
