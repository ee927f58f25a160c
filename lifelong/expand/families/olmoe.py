"""OLMoE: a mixture of experts with norms over all queries and all keys; heads x head size is the width."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import EXPERT_PARTS, GROUPED_FIXED_HEAD_AXES, expert_files, gated_decoder, sparse

FAMILY = Family(
    name="olmoe",
    model_types=("olmoe",),
    parameters=sparse(gated_decoder(head_norms=True)),
    axes={**GROUPED_FIXED_HEAD_AXES, "experts": "num_experts", "experts_per_token": "num_experts_per_tok"},
    head_norm="full",
    fixed_head=True,
    defaults={"num_experts": 4, "num_experts_per_tok": 2},
    requires={"clip_qkv": None},
    dense_parts=EXPERT_PARTS,
    expert_files=expert_files("mlp.experts"),
)
