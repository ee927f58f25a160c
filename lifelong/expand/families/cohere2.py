"""Command R7B and Command A: LayerNorm without biases, both sublayers side by side, rotary channels in pairs."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="cohere2",
    model_types=("cohere2",),
    parameters=gated_decoder(),
    axes=ROTARY_AXES,
    norm="layer",
    epsilon_key="layer_norm_eps",
    interleaved=True,
    defaults={"tie_word_embeddings": True},
)
