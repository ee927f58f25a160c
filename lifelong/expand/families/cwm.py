"""Code World Model: LLaMA's layout with a sliding window in most layers."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(name="cwm", model_types=("cwm",), parameters=gated_decoder(), axes=ROTARY_AXES)
