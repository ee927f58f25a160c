"""Tables that several families share."""

from __future__ import annotations

from collections.abc import Mapping

from lifelong.expand.family import (
    ExpertFiles,
    Parameter,
    embedding,
    final_norm,
    head,
    k_norm,
    kept,
    post_norm,
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


GROUPED_FIXED_HEAD_AXES = {axis: key for axis, key in ROTARY_AXES.items() if axis != "head_dim"}


def gated_decoder(
    *, head_norms: bool = False, pre_norms: bool = True, post_norms: Mapping[str, Parameter] | None = None
) -> dict[str, Parameter]:
    """The table of a decoder in LLaMA's layout; biases (of norms too) are matched where a checkpoint has them."""
    block, attention = "model.layers.{layer}.", "model.layers.{layer}.self_attn."
    table = {
        "model.embed_tokens.weight": embedding("vocab"),
        "model.norm.weight": final_norm(),
        "model.norm.bias": final_norm(bias=True),
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
        for norm in ("input_layernorm", "post_attention_layernorm"):
            table |= {f"{block}{norm}.weight": pre_norm(), f"{block}{norm}.bias": pre_norm(bias=True)}
    if head_norms:
        table |= {attention + "q_norm.weight": q_norm(), attention + "k_norm.weight": k_norm()}
    return table | {block + name: parameter for name, parameter in (post_norms or {}).items()}


def norms_after() -> dict[str, Parameter]:
    """The table of a decoder with norms after its sublayers only, and norms of queries and keys (OLMo 2)."""
    after = ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")
    return gated_decoder(head_norms=True, pre_norms=False, post_norms={name: post_norm() for name in after})


def sparse(table: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The table of a mixture of experts: that of the dense model with fused experts and a router."""
    return dict(table) | {
        "model.layers.{layer}.mlp.gate.weight": router(),
        "model.layers.{layer}.mlp.experts.gate_up_proj": reader("ffn", "ffn", per_expert=True),
        "model.layers.{layer}.mlp.experts.down_proj": writer("ffn", per_expert=True),
    }


def with_shared_expert(table: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """A sparse table with an expert that all tokens pass, of a size of its own that stays."""
    shared = "model.layers.{layer}.mlp.shared_expert"
    return dict(table) | {
        f"{shared}.gate_proj.weight": reader("stays"),
        f"{shared}.up_proj.weight": reader("stays"),
        f"{shared}.down_proj.weight": writer("stays"),
        f"{shared}_gate.weight": reader("stays"),
    }


def with_linear_attention(table: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """A table with gated DeltaNet layers, whose state stays, and a gate beside the queries of the others."""
    attention = "model.layers.{layer}.linear_attn."
    readers = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "in_proj_qkvz", "in_proj_ba")
    states = ("dt_bias", "A_log", "conv1d.weight", "norm.weight")
    return (
        dict(table)
        | {f"{attention}{name}.weight": reader("stays") for name in readers}
        | {f"{attention}{name}": kept() for name in states}
        | {
            f"{attention}out_proj.weight": writer("stays"),
            "model.layers.{layer}.self_attn.q_proj.weight": reader("q", "gate", by_head=True),
            "model.layers.{layer}.self_attn.q_proj.bias": reader_bias("q", "gate", by_head=True),
        }
    )


LINEAR_ATTENTION_SIZES = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip


def expert_files(part: str) -> tuple[ExpertFiles, ...]:
    """Experts stored one by one below the module `part` of a layer."""
    files = f"model.layers.{{layer}}.{part}.{{expert}}."
    return (
        ExpertFiles(
            f"model.layers.{{layer}}.{part}.gate_up_proj", (files + "gate_proj.weight", files + "up_proj.weight")
        ),
        ExpertFiles(f"model.layers.{{layer}}.{part}.down_proj", (files + "down_proj.weight",)),
    )


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
        f"{base}.embeddings.token_type_embeddings.weight": embedding("stays"),
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
