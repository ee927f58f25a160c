"""ELECTRA with embeddings as wide as the model (base, large): BERT's layout; generators and discriminators."""

from lifelong.expand.family import Family, head, head_bias, mlm_dense, mlm_norm, task_head
from lifelong.expand.layouts import FIXED_HEAD_AXES, post_norm_encoder

FAMILY = Family(
    name="electra",
    model_types=("electra",),
    parameters=post_norm_encoder(
        "electra",
        {
            "generator_predictions.dense.weight": mlm_dense(),
            "generator_predictions.dense.bias": mlm_dense(bias=True),
            "generator_predictions.LayerNorm.weight": mlm_norm(),
            "generator_predictions.LayerNorm.bias": mlm_norm(bias=True),
            "generator_lm_head.weight": head(tied_to="electra.embeddings.word_embeddings.weight"),
            "generator_lm_head.bias": head_bias(),
            "discriminator_predictions.dense.weight": mlm_dense(),
            "discriminator_predictions.dense.bias": mlm_dense(bias=True),
            "discriminator_predictions.dense_prediction.weight": task_head(),
            "discriminator_predictions.dense_prediction.bias": task_head(bias=True),
        },
    ),
    axes=FIXED_HEAD_AXES,
    norm="layer",
    epsilon_key="layer_norm_eps",
    placement="stream",
    fixed_head=True,
    objective="mlm",
    gated=False,
    follows={"embedding_size": "hidden_size"},
    requires={"is_decoder": False, "add_cross_attention": False},
)
