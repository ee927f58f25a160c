"""Gemma 1: LLaMA's layout, gains stored less one, embeddings scaled by the root of the width."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="gemma",
    model_types=("gemma",),
    parameters=gated_decoder(),
    axes=ROTARY_AXES,
    gain_offset=1.0,
    scaled_embedding=True,
)
