"""Mistral: pre-norm RMSNorm, rotary grouped-query attention, SwiGLU."""

from lifelong.expand.family import ROTARY_CONFIG, Family, gated_decoder

FAMILY = Family(
    name="mistral",
    model_types=("mistral",),
    tensors=gated_decoder(),
    config_names=ROTARY_CONFIG,
    defaults={"tie_word_embeddings": True},
)
