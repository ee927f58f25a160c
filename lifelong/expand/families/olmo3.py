"""OLMo 3: OLMo 2's layout, most layers with a sliding window and a rotary table of their own."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, norms_after

FAMILY = Family(
    name="olmo3",
    model_types=("olmo3",),
    parameters=norms_after(),
    axes=ROTARY_AXES,
    placement="post",
    head_norm="full",
)
