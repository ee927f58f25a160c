"""Ministral: Mistral's layout, some layers with a sliding window."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(name="ministral", model_types=("ministral",), parameters=gated_decoder(), axes=ROTARY_AXES)
