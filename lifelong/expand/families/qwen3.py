"""Qwen3: like LLaMA, with an RMSNorm on every query and key head."""

from lifelong.expand.family import ROTARY_CONFIG, Family, gated_decoder

FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    tensors=gated_decoder(head_norms=True),
    config_names=ROTARY_CONFIG,
    defaults={"tie_word_embeddings": True},
)
