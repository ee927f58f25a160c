"""Gemma 3, text: Gemma 2 with norms on queries and keys and rotary tables by kind of layer."""

from lifelong.expand.family import Family, post_norm, pre_norm
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="gemma3",
    model_types=("gemma3_text",),
    parameters=gated_decoder(
        head_norms=True,
        post_norms={
            "post_attention_layernorm.weight": post_norm(),
            "pre_feedforward_layernorm.weight": pre_norm(),
            "post_feedforward_layernorm.weight": post_norm(),
        },
    ),
    axes=ROTARY_AXES,
    placement="sandwich",
    gain_offset=1.0,
    head_norm="head",
    score_scale="fixed",
    scaled_embedding=True,
    initial={"query_pre_attn_scalar": "head_dim"},
)
