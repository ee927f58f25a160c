"""GLM-4.5 to 4.7: dense layers first, then a mixture with a bias for the choice of experts and one for all tokens."""

from lifelong.expand.family import Family, reader, router, writer
from lifelong.expand.layouts import ROTARY_AXES, expert_files, gated_decoder, sparse

MLP = "model.layers.{layer}.mlp."
FAMILY = Family(
    name="glm4_moe",
    model_types=("glm4_moe",),
    parameters={
        **sparse(gated_decoder(head_norms=True)),
        MLP + "gate.e_score_correction_bias": router(bias=True),
        MLP + "shared_experts.gate_proj.weight": reader("ffn"),
        MLP + "shared_experts.up_proj.weight": reader("ffn"),
        MLP + "shared_experts.down_proj.weight": writer("ffn"),
        # the first layers are dense, of a size of their own
        MLP + "gate_proj.weight": reader("stays"),
        MLP + "up_proj.weight": reader("stays"),
        MLP + "down_proj.weight": writer("stays"),
    },
    axes={
        **ROTARY_AXES,
        "intermediate_size": "moe_intermediate_size",
        "experts": "n_routed_experts",
        "experts_per_token": "num_experts_per_tok",
    },
    head_norm="head",
    head_norm_key="use_qk_norm",
    partial_rotary=True,
    first_layers=("first_k_dense_replace",),
    defaults={
        "intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2, "use_qk_norm": True,
        "first_k_dense_replace": 1,
    },
    requires={"n_shared_experts": 1},
    # copies of an expert fall into other groups, and without the division by their sum they count twice
    axis_requires={"experts": {"n_group": 1, "norm_topk_prob": True}},
    expert_files=expert_files("mlp.experts"),
)  # fmt: skip
