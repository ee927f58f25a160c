"""GLM-4 (0414): a norm before and after every sublayer, part of a head rotary, gate and up fused."""

from lifelong.expand.family import Family, post_norm, reader
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="glm4",
    model_types=("glm4",),
    parameters={
        **gated_decoder(
            post_norms={
                "post_self_attn_layernorm.weight": post_norm(),
                "post_mlp_layernorm.weight": post_norm(),
            }
        ),
        "model.layers.{layer}.mlp.gate_up_proj.weight": reader("ffn", "ffn"),
    },
    axes=ROTARY_AXES,
    placement="sandwich",
    partial_rotary=True,
    interleaved=True,
)
