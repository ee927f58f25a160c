"""StarCoder2: LayerNorm, rotary grouped-query attention, biases everywhere, no gate."""

from lifelong.expand.family import Family, reader, reader_bias, writer, writer_bias
from lifelong.expand.layouts import ROTARY_AXES, gated_decoder

FAMILY = Family(
    name="starcoder2",
    model_types=("starcoder2",),
    parameters={
        **gated_decoder(),
        "model.layers.{layer}.mlp.c_fc.weight": reader("ffn"),
        "model.layers.{layer}.mlp.c_fc.bias": reader_bias("ffn"),
        "model.layers.{layer}.mlp.c_proj.weight": writer("ffn"),
        "model.layers.{layer}.mlp.c_proj.bias": writer_bias("ffn"),
    },
    axes=ROTARY_AXES,
    norm="layer",
    epsilon_key="norm_epsilon",
    gated=False,
    defaults={"tie_word_embeddings": True},
)
