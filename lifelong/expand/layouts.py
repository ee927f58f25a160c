"""Tables that several families share."""

from __future__ import annotations

from collections.abc import Mapping

from lifelong.expand.family import (
    Parameter,
    embedding,
    final_norm,
    head,
    k_norm,
    pre_norm,
    q_norm,
    reader,
    reader_bias,
    router,
    stream_norm,
    writer,
    writer_bias,
)

ROTARY_AXES = {
    "layers": "num_hidden_layers", "hidden_size": "hidden_size", "intermediate_size": "intermediate_size",
    "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim",
    "vocab_size": "vocab_size", "positions": "max_position_embeddings",
}  # fmt: skip
FIXED_HEAD_AXES = {axis: key for axis, key in ROTARY_AXES.items() if axis not in ("kv_heads", "head_dim")}


def gated_decoder(
    *, head_norms: bool = False, pre_norms: bool = True, post_norms: Mapping[str, Parameter] | None = None
) -> dict[str, Parameter]:
    """The table of a decoder in LLaMA's layout; biases are matched where a checkpoint has them."""
    block, attention = "model.layers.{layer}.", "model.layers.{layer}.self_attn."
    table = {
        "model.embed_tokens.weight": embedding("vocab"),
        "model.norm.weight": final_norm(),
        "lm_head.weight": head(tied_to="model.embed_tokens.weight"),
        attention + "q_proj.weight": reader("q"),
        attention + "k_proj.weight": reader("k"),
        attention + "v_proj.weight": reader("v"),
        attention + "q_proj.bias": reader_bias("q"),
        attention + "k_proj.bias": reader_bias("k"),
        attention + "v_proj.bias": reader_bias("v"),
        attention + "o_proj.weight": writer("o"),
        attention + "o_proj.bias": writer_bias("o"),
        block + "mlp.gate_proj.weight": reader("ffn"),
        block + "mlp.up_proj.weight": reader("ffn"),
        block + "mlp.gate_proj.bias": reader_bias("ffn"),
        block + "mlp.up_proj.bias": reader_bias("ffn"),
        block + "mlp.down_proj.weight": writer("ffn"),
        block + "mlp.down_proj.bias": writer_bias("ffn"),
    }
    if pre_norms:
        table |= {block + "input_layernorm.weight": pre_norm(), block + "post_attention_layernorm.weight": pre_norm()}
    if head_norms:
        table |= {attention + "q_norm.weight": q_norm(), attention + "k_norm.weight": k_norm()}
    return table | {block + name: parameter for name, parameter in (post_norms or {}).items()}


def sparse(table: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The table of a mixture of experts: that of the dense model with fused experts and a router."""
    return dict(table) | {
        "model.layers.{layer}.mlp.gate.weight": router(),
        "model.layers.{layer}.mlp.experts.gate_up_proj": reader("ffn", "ffn", per_expert=True),
        "model.layers.{layer}.mlp.experts.down_proj": writer("ffn", per_expert=True),
    }


EXPERT_PARTS = {
    "model.layers.{layer}.mlp.experts.gate_up_proj": (
        "model.layers.{layer}.mlp.gate_proj.weight",
        "model.layers.{layer}.mlp.up_proj.weight",
    ),
    "model.layers.{layer}.mlp.experts.down_proj": ("model.layers.{layer}.mlp.down_proj.weight",),
}


def post_norm_encoder(base: str, mlm: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The table of a post-norm encoder in BERT's layout below the module `base`."""
    block = f"{base}.encoder.layer.{{layer}}."
    table = {
        f"{base}.embeddings.word_embeddings.weight": embedding("vocab"),
        f"{base}.embeddings.position_embeddings.weight": embedding("positions"),
        f"{base}.embeddings.token_type_embeddings.weight": embedding("types"),
        f"{base}.embeddings.LayerNorm.weight": stream_norm("embedding"),
        f"{base}.embeddings.LayerNorm.bias": stream_norm("embedding", bias=True),
    }
    for name, space in (("query", "q"), ("key", "k"), ("value", "v")):
        table[f"{block}attention.self.{name}.weight"] = reader(space)
        table[f"{block}attention.self.{name}.bias"] = reader_bias(space)
    return {
        **table,
        block + "attention.output.dense.weight": writer("o"),
        block + "attention.output.dense.bias": writer_bias("o"),
        block + "attention.output.LayerNorm.weight": stream_norm("o"),
        block + "attention.output.LayerNorm.bias": stream_norm("o", bias=True),
        block + "intermediate.dense.weight": reader("ffn"),
        block + "intermediate.dense.bias": reader_bias("ffn"),
        block + "output.dense.weight": writer("ffn"),
        block + "output.dense.bias": writer_bias("ffn"),
        block + "output.LayerNorm.weight": stream_norm("ffn"),
        block + "output.LayerNorm.bias": stream_norm("ffn", bias=True),
        **mlm,
    }
