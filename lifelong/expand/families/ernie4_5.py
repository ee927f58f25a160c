"""ERNIE 4.5, dense: LLaMA's layout; rotary channels are turned in neighbouring pairs."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="ernie4_5",
    model_types=("ernie4_5",),
    parameters=gated_decoder(),
    axes=ROTARY_AXES,
    interleaved=True,
    defaults={"tie_word_embeddings": True},
)
