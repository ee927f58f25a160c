"""Rounding to bfloat16 by chance: up or down, the more probably to the nearer side, so that it is right in the mean.

Source: Gupta et al. 2015 (arXiv 1502.02551), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIELD_BITS = 16
"""Bits by which float32 is longer than bfloat16."""


def put_rounded(targets: list[tuple[Tensor, Tensor]], generator: torch.Generator) -> None:
    """Put float32 values into tensors; into those of bfloat16 rounded up or down by chance, right in the mean.

    Args:
        targets: up to three pairs of (where to, value), all of one size.
        generator: of the random bits.
    """
    bits = None
    for place, (target, value) in enumerate(targets):
        if target.dtype != torch.bfloat16:
            target.copy_(value)
            continue
        if bits is None:  # three fields of one draw
            bits = torch.randint(
                1 << 3 * FIELD_BITS, value.shape, dtype=torch.int64, device=value.device, generator=generator
            )
        field = (bits >> place * FIELD_BITS).bitwise_and_(0xFFFF).int()
        # adding below the mantissa's end carries into it with the right probability; the sign is apart
        rounded = (field + value.view(torch.int32)).bitwise_and_(-(1 << FIELD_BITS))
        target.copy_(rounded.view(torch.float32))
