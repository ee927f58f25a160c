"""GLM-4 (9B, 2024): LLaMA's layout with fused gate and up; part of a head is rotary, in neighbouring pairs."""

from lifelong.expand.family import Family, reader
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="glm",
    model_types=("glm",),
    parameters={**gated_decoder(), "model.layers.{layer}.mlp.gate_up_proj.weight": reader("ffn", "ffn")},
    axes=ROTARY_AXES,
    partial_rotary=True,
    interleaved=True,
)
