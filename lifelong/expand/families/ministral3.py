"""Ministral 3: Mistral's layout; queries are scaled by their position."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(name="ministral3", model_types=("ministral3",), parameters=gated_decoder(), axes=ROTARY_AXES)
