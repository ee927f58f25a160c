"""Qwen3.5, text: gated DeltaNet layers, whose state stays, between layers of gated attention."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import LINEAR_ATTENTION_SIZES, ROTARY_AXES, gated_decoder, with_linear_attention

FAMILY = Family(
    name="qwen3_5",
    model_types=("qwen3_5_text",),
    parameters=with_linear_attention(gated_decoder(head_norms=True)),
    axes=ROTARY_AXES,
    gain_offset=1.0,
    head_norm="head",
    partial_rotary=True,
    defaults=LINEAR_ATTENTION_SIZES,
)
