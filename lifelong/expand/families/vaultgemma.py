"""VaultGemma: Gemma 2 without the norms behind the sublayers."""

from lifelong.expand.family import Family, pre_norm
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="vaultgemma",
    model_types=("vaultgemma",),
    parameters={
        **gated_decoder(pre_norms=False),
        "model.layers.{layer}.input_layernorm.weight": pre_norm(),
        "model.layers.{layer}.pre_feedforward_layernorm.weight": pre_norm(),
    },
    axes=ROTARY_AXES,
    gain_offset=1.0,
    score_scale="fixed",
    scaled_embedding=True,
    initial={"query_pre_attn_scalar": "head_dim"},
)
