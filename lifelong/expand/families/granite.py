"""Granite: LLaMA's layout with constant factors on embeddings, sublayers, scores and logits."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="granite",
    model_types=("granite",),
    parameters=gated_decoder(),
    axes=ROTARY_AXES,
    score_scale="fixed",
)
