"""Phi 1 and 2: LayerNorm, attention and feed-forward side by side, part of a head rotary, biases everywhere."""

from lifelong.expand.family import Family, final_norm, head_bias, reader, reader_bias, writer, writer_bias
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

BLOCK = "model.layers.{layer}."
FAMILY = Family(
    name="phi",
    model_types=("phi",),
    parameters={
        **gated_decoder(),
        BLOCK + "self_attn.dense.weight": writer("o"),
        BLOCK + "self_attn.dense.bias": writer_bias("o"),
        BLOCK + "mlp.fc1.weight": reader("ffn"),
        BLOCK + "mlp.fc1.bias": reader_bias("ffn"),
        BLOCK + "mlp.fc2.weight": writer("ffn"),
        BLOCK + "mlp.fc2.bias": writer_bias("ffn"),
        "model.final_layernorm.weight": final_norm(),
        "model.final_layernorm.bias": final_norm(bias=True),
        "lm_head.bias": head_bias(),
    },
    axes=ROTARY_AXES,
    norm="layer",
    epsilon_key="layer_norm_eps",
    partial_rotary=True,
    gated=False,
    requires={"qk_layernorm": False},
)
