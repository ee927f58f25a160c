"""OLMo 3: OLMo 2's layout, most layers with a sliding window and a rotary table of their own."""

from lifelong.expand.family import Family, post_norm
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="olmo3",
    model_types=("olmo3",),
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
    head_norm="full",
)
