"""Helium: LLaMA's layout; rotary channels in neighbouring pairs, and heads x head size is the width."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="helium",
    model_types=("helium",),
    parameters=gated_decoder(),
    axes=ROTARY_AXES,
    interleaved=True,
    fixed_head=True,
)
