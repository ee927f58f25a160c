"""Seed-OSS: LLaMA's layout with biases on queries, keys and values."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(name="seed_oss", model_types=("seed_oss",), parameters=gated_decoder(), axes=ROTARY_AXES)
