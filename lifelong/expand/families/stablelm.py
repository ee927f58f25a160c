"""StableLM 2: LayerNorm, part of a head rotary, grouped queries; heads x head size is the width."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import GROUPED_FIXED_HEAD_AXES, gated_decoder

FAMILY = Family(
    name="stablelm",
    model_types=("stablelm",),
    parameters=gated_decoder(),
    axes=GROUPED_FIXED_HEAD_AXES,
    norm="layer",
    epsilon_key="layer_norm_eps",
    partial_rotary=True,
    fixed_head=True,
    requires={"qk_layernorm": False},
)
