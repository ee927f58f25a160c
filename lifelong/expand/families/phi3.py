"""Phi-3 and Phi-4: LLaMA's layout with fused projections; part of a head may be rotary."""

from lifelong.expand.family import Family, embedding, final_norm, head, pre_norm, reader, writer
from lifelong.expand.layouts import ROTARY_AXES

FAMILY = Family(
    name="phi3",
    model_types=("phi3",),
    parameters={
        "model.embed_tokens.weight": embedding("vocab"),
        "model.layers.{layer}.input_layernorm.weight": pre_norm(),
        "model.layers.{layer}.self_attn.qkv_proj.weight": reader("q", "k", "v"),
        "model.layers.{layer}.self_attn.o_proj.weight": writer("o"),
        "model.layers.{layer}.post_attention_layernorm.weight": pre_norm(),
        "model.layers.{layer}.mlp.gate_up_proj.weight": reader("ffn", "ffn"),
        "model.layers.{layer}.mlp.down_proj.weight": writer("ffn"),
        "model.norm.weight": final_norm(),
        "lm_head.weight": head(tied_to="model.embed_tokens.weight"),
    },
    axes=ROTARY_AXES,
    partial_rotary=True,
    initial={"original_max_position_embeddings": "positions"},
)
