"""OLMo 2: norms after the sublayers only, and over all queries and all keys at once."""

from lifelong.expand.family import Family, post_norm
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="olmo2",
    model_types=("olmo2",),
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
