"""LLaMA 1, 2, 3: pre-norm RMSNorm decoder with rotary grouped-query attention."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="llama", model_types=("llama",), parameters=gated_decoder(), axes=ROTARY_AXES, experts_family="mixtral"
)
