"""GPT-NeoX and Pythia: LayerNorm, parallel residual, part of a head rotary, projections fused head by head."""

from lifelong.expand.family import (
    Family,
    embedding,
    final_norm,
    head,
    pre_norm,
    reader,
    reader_bias,
    writer,
    writer_bias,
)
from lifelong.expand.layouts import FIXED_HEAD_AXES

BLOCK = "gpt_neox.layers.{layer}."
FAMILY = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    parameters={
        "gpt_neox.embed_in.weight": embedding("vocab"),
        BLOCK + "input_layernorm.weight": pre_norm(),
        BLOCK + "input_layernorm.bias": pre_norm(bias=True),
        BLOCK + "attention.query_key_value.weight": reader("q", "k", "v", by_head=True),
        BLOCK + "attention.query_key_value.bias": reader_bias("q", "k", "v", by_head=True),
        BLOCK + "attention.dense.weight": writer("o"),
        BLOCK + "attention.dense.bias": writer_bias("o"),
        BLOCK + "post_attention_layernorm.weight": pre_norm(),
        BLOCK + "post_attention_layernorm.bias": pre_norm(bias=True),
        BLOCK + "mlp.dense_h_to_4h.weight": reader("ffn"),
        BLOCK + "mlp.dense_h_to_4h.bias": reader_bias("ffn"),
        BLOCK + "mlp.dense_4h_to_h.weight": writer("ffn"),
        BLOCK + "mlp.dense_4h_to_h.bias": writer_bias("ffn"),
        "gpt_neox.final_layer_norm.weight": final_norm(),
        "gpt_neox.final_layer_norm.bias": final_norm(bias=True),
        "lm_head.weight": head(tied_to="gpt_neox.embed_in.weight"),
    },
    axes=FIXED_HEAD_AXES,
    norm="layer",
    epsilon_key="layer_norm_eps",
    partial_rotary=True,
    fixed_head=True,
    gated=False,
    renames={"embed_out.weight": "lm_head.weight"},
)
