"""Apertus: LLaMA's layout with norms of queries and keys, and no gate; xIELU, whose two slopes are trained."""

from lifelong.expand.family import Family, kept, pre_norm
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="apertus",
    model_types=("apertus",),
    parameters=gated_decoder(
        head_norms=True,
        pre_norms=False,
        post_norms={
            "attention_layernorm.weight": pre_norm(),
            "feedforward_layernorm.weight": pre_norm(),
            "mlp.act_fn.alpha_p": kept(),
            "mlp.act_fn.alpha_n": kept(),
            "mlp.act_fn.beta": kept(),
            "mlp.act_fn.eps": kept(),
        },
    ),
    axes=ROTARY_AXES,
    head_norm="head",
    gated=False,
)
