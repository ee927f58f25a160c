"""Jais 2: LLaMA's layout with LayerNorm, biases and no gate; squared ReLU."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="jais2",
    model_types=("jais2",),
    parameters=gated_decoder(),
    axes=ROTARY_AXES,
    norm="layer",
    epsilon_key="layer_norm_eps",
    gated=False,
)
