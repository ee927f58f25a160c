"""Qwen3-MoE: Qwen3's layout with a mixture of experts in every layer."""

from lifelong.expand.family import ExpertFiles, Family
from lifelong.expand.layouts import EXPERT_PARTS, ROTARY_AXES, gated_decoder, sparse

FILES = "model.layers.{layer}.mlp.experts.{expert}."
FAMILY = Family(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    parameters=sparse(gated_decoder(head_norms=True)),
    axes={
        **ROTARY_AXES,
        "intermediate_size": "moe_intermediate_size",
        "experts": "num_local_experts",
        "experts_per_token": "num_experts_per_tok",
    },
    head_norm="head",
    defaults={"num_local_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    requires={"mlp_only_layers": [], "decoder_sparse_step": 1},
    dense_parts=EXPERT_PARTS,
    expert_files=(
        ExpertFiles(
            "model.layers.{layer}.mlp.experts.gate_up_proj", (FILES + "gate_proj.weight", FILES + "up_proj.weight")
        ),
        ExpertFiles("model.layers.{layer}.mlp.experts.down_proj", (FILES + "down_proj.weight",)),
    ),
)
