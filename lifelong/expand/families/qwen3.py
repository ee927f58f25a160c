"""Qwen3: LLaMA's layout with an RMSNorm on every query and key head."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    parameters=gated_decoder(head_norms=True),
    axes=ROTARY_AXES,
    head_norm="head",
    defaults={"tie_word_embeddings": True},
    experts_family="qwen3_moe",
)
