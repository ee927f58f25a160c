"""OPT: LayerNorm before the sublayers, learned positions with two rows in front."""

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

BLOCK = "model.decoder.layers.{layer}."
FAMILY = Family(
    name="opt",
    model_types=("opt",),
    parameters={
        "model.decoder.embed_tokens.weight": embedding("vocab"),
        "model.decoder.embed_positions.weight": embedding("positions"),
        BLOCK + "self_attn_layer_norm.weight": pre_norm(),
        BLOCK + "self_attn_layer_norm.bias": pre_norm(bias=True),
        BLOCK + "self_attn.q_proj.weight": reader("q"),
        BLOCK + "self_attn.q_proj.bias": reader_bias("q"),
        BLOCK + "self_attn.k_proj.weight": reader("k"),
        BLOCK + "self_attn.k_proj.bias": reader_bias("k"),
        BLOCK + "self_attn.v_proj.weight": reader("v"),
        BLOCK + "self_attn.v_proj.bias": reader_bias("v"),
        BLOCK + "self_attn.out_proj.weight": writer("o"),
        BLOCK + "self_attn.out_proj.bias": writer_bias("o"),
        BLOCK + "final_layer_norm.weight": pre_norm(),
        BLOCK + "final_layer_norm.bias": pre_norm(bias=True),
        BLOCK + "fc1.weight": reader("ffn"),
        BLOCK + "fc1.bias": reader_bias("ffn"),
        BLOCK + "fc2.weight": writer("ffn"),
        BLOCK + "fc2.bias": writer_bias("ffn"),
        "model.decoder.final_layer_norm.weight": final_norm(),
        "model.decoder.final_layer_norm.bias": final_norm(bias=True),
        "lm_head.weight": head(tied_to="model.decoder.embed_tokens.weight"),
    },
    axes={
        "layers": "num_hidden_layers",
        "hidden_size": "hidden_size",
        "intermediate_size": "ffn_dim",
        "heads": "num_attention_heads",
        "vocab_size": "vocab_size",
        "positions": "max_position_embeddings",
    },
    norm="layer",
    epsilon_key="layer_norm_eps",
    fixed_head=True,
    gated=False,
    follows={"word_embed_proj_dim": "hidden_size"},
    requires={"do_layer_norm_before": True, "_remove_final_layer_norm": False},
    axis_requires={"hidden_size": {"layer_norm_elementwise_affine": True}},  # no gain could undo the wider norm
    position_rows=2,
    init_key="init_std",
)
