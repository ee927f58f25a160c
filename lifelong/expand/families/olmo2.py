"""OLMo 2: norms after the sublayers only, and over all queries and all keys at once."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, norms_after

FAMILY = Family(
    name="olmo2",
    model_types=("olmo2",),
    parameters=norms_after(),
    axes=ROTARY_AXES,
    placement="post",
    head_norm="full",
)
