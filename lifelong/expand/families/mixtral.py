"""Mixtral: Mistral's layout with a mixture of experts; the weights of the chosen experts sum to one."""

from lifelong.expand.family import ExpertFiles, Family
from lifelong.expand.layouts import EXPERT_PARTS, ROTARY_AXES, gated_decoder, sparse

FILES = "model.layers.{layer}.block_sparse_moe.experts.{expert}."
FAMILY = Family(
    name="mixtral",
    model_types=("mixtral",),
    parameters=sparse(gated_decoder()),
    axes={**ROTARY_AXES, "experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"},
    defaults={"num_local_experts": 4, "num_experts_per_tok": 2},
    dense_parts=EXPERT_PARTS,
    expert_files=(
        ExpertFiles("model.layers.{layer}.mlp.experts.gate_up_proj", (FILES + "w1.weight", FILES + "w3.weight")),
        ExpertFiles("model.layers.{layer}.mlp.experts.down_proj", (FILES + "w2.weight",)),
    ),
    file_renames={".mlp.gate.weight": ".block_sparse_moe.gate.weight"},
)
