"""Nemotron and Minitron: LayerNorm with gains around zero, part of a head rotary, no gate; squared ReLU."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="nemotron",
    model_types=("nemotron",),
    parameters=gated_decoder(),
    axes=ROTARY_AXES,
    norm="layer",
    epsilon_key="norm_eps",
    gain_offset=1.0,
    partial_rotary=True,
    gated=False,
)
