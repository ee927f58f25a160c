"""Qwen1.5-MoE and Qwen2-MoE: Qwen2's layout, a mixture of experts, and one for all tokens, whose size stays."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import EXPERT_PARTS, ROTARY_AXES, expert_files, gated_decoder, sparse, with_shared_expert

FAMILY = Family(
    name="qwen2_moe",
    model_types=("qwen2_moe",),
    parameters=with_shared_expert(sparse(gated_decoder())),
    axes={
        **ROTARY_AXES,
        "intermediate_size": "moe_intermediate_size",
        "experts": "num_experts",
        "experts_per_token": "num_experts_per_tok",
    },
    defaults={"num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 48},
    requires={"mlp_only_layers": [], "decoder_sparse_step": 1},
    dense_parts=EXPERT_PARTS,
    expert_files=expert_files("mlp.experts"),
)
