"""Qwen2 and Qwen2.5: LLaMA's layout with biases on queries, keys and values."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(name="qwen2", model_types=("qwen2",), parameters=gated_decoder(), axes=ROTARY_AXES)
