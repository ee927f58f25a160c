"""BERT: LayerNorm after the sublayers; its output is the stream."""

from lifelong.expand.family import Family, head, head_bias, mlm_dense, mlm_norm
from lifelong.expand.layouts import FIXED_HEAD_AXES, post_norm_encoder

FAMILY = Family(
    name="bert",
    model_types=("bert",),
    parameters=post_norm_encoder(
        "bert",
        {
            "cls.predictions.transform.dense.weight": mlm_dense(),
            "cls.predictions.transform.dense.bias": mlm_dense(bias=True),
            "cls.predictions.transform.LayerNorm.weight": mlm_norm(),
            "cls.predictions.transform.LayerNorm.bias": mlm_norm(bias=True),
            "cls.predictions.decoder.weight": head(tied_to="bert.embeddings.word_embeddings.weight"),
            "cls.predictions.bias": head_bias(),
            "cls.predictions.decoder.bias": head_bias(tied_to="cls.predictions.bias"),
        },
    ),
    axes=FIXED_HEAD_AXES,
    norm="layer",
    epsilon_key="layer_norm_eps",
    placement="stream",
    fixed_head=True,
    objective="mlm",
    gated=False,
    requires={"is_decoder": False, "add_cross_attention": False},
    renames={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
)
