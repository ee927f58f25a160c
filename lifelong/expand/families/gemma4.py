"""Gemma 4, text, dense: Gemma 3 with a factor on every layer, and heads of another size in layers that see all."""

from lifelong.expand.family import Family, kept, layer_scale, post_norm, pre_norm, reader, reader_bias, writer
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

ATTENTION = "model.layers.{layer}.self_attn."
HEADS = "local and global layers have heads of different sizes and numbers"
FAMILY = Family(
    name="gemma4",
    model_types=("gemma4_text",),
    parameters={
        **gated_decoder(
            post_norms={
                "post_attention_layernorm.weight": post_norm(),
                "pre_feedforward_layernorm.weight": pre_norm(),
                "post_feedforward_layernorm.weight": post_norm(),
                "layer_scalar": layer_scale(),
            }
        ),
        ATTENTION + "q_proj.weight": reader("stays"),
        ATTENTION + "k_proj.weight": reader("stays"),
        ATTENTION + "v_proj.weight": reader("stays"),
        ATTENTION + "q_proj.bias": reader_bias("stays"),
        ATTENTION + "k_proj.bias": reader_bias("stays"),
        ATTENTION + "v_proj.bias": reader_bias("stays"),
        ATTENTION + "o_proj.weight": writer("stays"),
        ATTENTION + "q_norm.weight": kept(),
        ATTENTION + "k_norm.weight": kept(),
    },
    axes=ROTARY_AXES,
    placement="sandwich",
    head_norm="head",
    score_scale="fixed",
    scaled_embedding=True,
    defaults={"hidden_size_per_layer_input": 0},
    requires={"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "enable_moe_block": False},
    refuses={"heads": HEADS, "kv_heads": HEADS, "head_dim": HEADS},
)
