"""Gemma 2: a norm before and after every sublayer, constant attention scale."""

from lifelong.expand.family import Family, post_norm, pre_norm
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="gemma2",
    model_types=("gemma2",),
    parameters=gated_decoder(
        post_norms={
            "post_attention_layernorm.weight": post_norm(),
            "pre_feedforward_layernorm.weight": pre_norm(),
            "post_feedforward_layernorm.weight": post_norm(),
        }
    ),
    axes=ROTARY_AXES,
    placement="sandwich",
    gain_offset=1.0,
    score_scale="fixed",
    scaled_embedding=True,
    initial={"query_pre_attn_scalar": "head_dim"},
)
