"""Qwen2: like LLaMA, with biases on query, key and value."""

from lifelong.expand.family import ROTARY_CONFIG, Family, gated_decoder

FAMILY = Family(
    name="qwen2",
    model_types=("qwen2",),
    tensors=gated_decoder(attention_bias=True),
    config_names=ROTARY_CONFIG,
    defaults={"tie_word_embeddings": True},
)
