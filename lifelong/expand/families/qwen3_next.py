"""Qwen3-Next: Qwen3.5's layers with a mixture of experts, and one that all tokens pass, whose size stays."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import (
    LINEAR_ATTENTION_SIZES,
    ROTARY_AXES,
    expert_files,
    gated_decoder,
    sparse,
    with_linear_attention,
    with_shared_expert,
)

FAMILY = Family(
    name="qwen3_next",
    model_types=("qwen3_next",),
    parameters=with_linear_attention(with_shared_expert(sparse(gated_decoder(head_norms=True)))),
    axes={
        **ROTARY_AXES,
        "intermediate_size": "moe_intermediate_size",
        "experts": "num_experts",
        "experts_per_token": "num_experts_per_tok",
    },
    gain_offset=1.0,
    head_norm="head",
    partial_rotary=True,
    defaults={
        **LINEAR_ATTENTION_SIZES,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 48,
    },
    requires={"mlp_only_layers": [], "decoder_sparse_step": 1},
    expert_files=expert_files("mlp.experts"),
)
