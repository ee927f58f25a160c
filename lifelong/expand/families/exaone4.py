"""EXAONE 4: norms after the sublayers only, and on every query and key head."""

from lifelong.expand.family import Family, post_norm
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="exaone4",
    model_types=("exaone4",),
    parameters=gated_decoder(
        head_norms=True,
        pre_norms=False,
        post_norms={
            "post_attention_layernorm.weight": post_norm(),
            "post_feedforward_layernorm.weight": post_norm(),
        },
    ),
    axes=ROTARY_AXES,
    placement="post",
    head_norm="head",
)
