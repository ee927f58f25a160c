"""gpt-oss: a mixture of experts with biases, gate and up in turns, and a sink in every head."""

from lifelong.expand.family import Family, kept, reader, reader_bias, router, writer, writer_bias
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

EXPERTS = "model.layers.{layer}.mlp.experts."
FAMILY = Family(
    name="gpt_oss",
    model_types=("gpt_oss",),
    parameters={
        **gated_decoder(),
        "model.layers.{layer}.self_attn.sinks": kept("each_head"),
        "model.layers.{layer}.mlp.router.weight": router(),
        "model.layers.{layer}.mlp.router.bias": router(bias=True),
        EXPERTS + "gate_up_proj": reader("ffn", "ffn", transposed=True, by_neuron=True, per_expert=True),
        EXPERTS + "gate_up_proj_bias": reader_bias("ffn", "ffn", by_neuron=True, per_expert=True),
        EXPERTS + "down_proj": writer("ffn", transposed=True, per_expert=True),
        EXPERTS + "down_proj_bias": writer_bias("ffn", per_expert=True),
    },
    axes={**ROTARY_AXES, "experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"},
    defaults={"num_local_experts": 4, "num_experts_per_tok": 2},
)
