"""Mistral: LLaMA's layout with sliding-window attention."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="mistral", model_types=("mistral",), parameters=gated_decoder(), axes=ROTARY_AXES, experts_family="mixtral"
)
