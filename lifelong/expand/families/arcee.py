"""Arcee (AFM): LLaMA's layout without a gate; squared ReLU."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(name="arcee", model_types=("arcee",), parameters=gated_decoder(), axes=ROTARY_AXES, gated=False)
