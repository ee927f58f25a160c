"""RoBERTa, XLM-R and CamemBERT: BERT's layout; positions are counted from behind the padding token."""

from lifelong.expand.family import Family, head, head_bias, mlm_dense, mlm_norm
from lifelong.expand.layouts import FIXED_HEAD_AXES, post_norm_encoder

FAMILY = Family(
    name="roberta",
    model_types=("roberta", "xlm-roberta", "camembert"),
    parameters=post_norm_encoder(
        "roberta",
        {
            "lm_head.dense.weight": mlm_dense(),
            "lm_head.dense.bias": mlm_dense(bias=True),
            "lm_head.layer_norm.weight": mlm_norm(),
            "lm_head.layer_norm.bias": mlm_norm(bias=True),
            "lm_head.decoder.weight": head(tied_to="roberta.embeddings.word_embeddings.weight"),
            "lm_head.bias": head_bias(),
            "lm_head.decoder.bias": head_bias(tied_to="lm_head.bias"),
        },
    ),
    axes=FIXED_HEAD_AXES,
    norm="layer",
    epsilon_key="layer_norm_eps",
    placement="stream",
    fixed_head=True,
    objective="mlm",
    gated=False,
    defaults={"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    requires={"is_decoder": False, "add_cross_attention": False},
    positions_after_padding=True,
    renames={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
)
