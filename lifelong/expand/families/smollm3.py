"""SmolLM3: LLaMA's layout; some layers have no rotary positions, and `no_rope_layers` says which."""

from lifelong.expand.family import Family
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="smollm3",
    model_types=("smollm3",),
    parameters=gated_decoder(),
    axes=ROTARY_AXES,
    defaults={"tie_word_embeddings": True},
)
