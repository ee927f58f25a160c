"""GPT-2: LayerNorm, learned positions, projections stored transposed and fused."""

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

BLOCK = "transformer.h.{layer}."
FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    parameters={
        "transformer.wte.weight": embedding("vocab"),
        "transformer.wpe.weight": embedding("positions"),
        BLOCK + "ln_1.weight": pre_norm(),
        BLOCK + "ln_1.bias": pre_norm(bias=True),
        BLOCK + "attn.c_attn.weight": reader("q", "k", "v", transposed=True),
        BLOCK + "attn.c_attn.bias": reader_bias("q", "k", "v"),
        BLOCK + "attn.c_proj.weight": writer("o", transposed=True),
        BLOCK + "attn.c_proj.bias": writer_bias("o"),
        BLOCK + "ln_2.weight": pre_norm(),
        BLOCK + "ln_2.bias": pre_norm(bias=True),
        BLOCK + "mlp.c_fc.weight": reader("ffn", transposed=True),
        BLOCK + "mlp.c_fc.bias": reader_bias("ffn"),
        BLOCK + "mlp.c_proj.weight": writer("ffn", transposed=True),
        BLOCK + "mlp.c_proj.bias": writer_bias("ffn"),
        "transformer.ln_f.weight": final_norm(),
        "transformer.ln_f.bias": final_norm(bias=True),
        "lm_head.weight": head(tied_to="transformer.wte.weight"),
    },
    axes={
        "layers": "n_layer",
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "heads": "n_head",
        "vocab_size": "vocab_size",
        "positions": "n_positions",
    },
    norm="layer",
    epsilon_key="layer_norm_epsilon",
    fixed_head=True,
    gated=False,
    requires={"add_cross_attention": False, "scale_attn_by_inverse_layer_idx": False},
    axis_requires={"head_dim": {"scale_attn_weights": True}},
)
