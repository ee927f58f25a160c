"""EXAONE 4: norms after the sublayers only, and on every query and key head."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, norms_after

FAMILY = Family(
    name="exaone4",
    model_types=("exaone4",),
    parameters=norms_after(),
    axes=ROTARY_AXES,
    placement="post",
    head_norm="head",
)
