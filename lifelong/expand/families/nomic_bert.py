"""NomicBERT: BERT's post-norm layers with rotary heads and a gated feed-forward layer."""

from lifelong.expand.family import Family, embedding, head, head_bias, mlm_dense, mlm_norm, reader, stream_norm, writer
from lifelong.expand.layouts import FIXED_HEAD_AXES

BLOCK = "nomic_bert.layers.{layer}."
FAMILY = Family(
    name="nomic_bert",
    model_types=("nomic_bert",),
    parameters={
        "nomic_bert.embeddings.word_embeddings.weight": embedding("vocab"),
        "nomic_bert.embeddings.token_type_embeddings.weight": embedding("stays"),
        "nomic_bert.embeddings.LayerNorm.weight": stream_norm("embedding"),
        "nomic_bert.embeddings.LayerNorm.bias": stream_norm("embedding", bias=True),
        BLOCK + "self_attn.q_proj.weight": reader("q"),
        BLOCK + "self_attn.k_proj.weight": reader("k"),
        BLOCK + "self_attn.v_proj.weight": reader("v"),
        BLOCK + "self_attn.o_proj.weight": writer("o"),
        BLOCK + "post_attention_layernorm.weight": stream_norm("o"),
        BLOCK + "post_attention_layernorm.bias": stream_norm("o", bias=True),
        BLOCK + "mlp.gate_proj.weight": reader("ffn"),
        BLOCK + "mlp.up_proj.weight": reader("ffn"),
        BLOCK + "mlp.down_proj.weight": writer("ffn"),
        BLOCK + "post_mlp_layernorm.weight": stream_norm("ffn"),
        BLOCK + "post_mlp_layernorm.bias": stream_norm("ffn", bias=True),
        "cls.predictions.transform.dense.weight": mlm_dense(),
        "cls.predictions.transform.dense.bias": mlm_dense(bias=True),
        "cls.predictions.transform.layer_norm.weight": mlm_norm(),
        "cls.predictions.transform.layer_norm.bias": mlm_norm(bias=True),
        "cls.predictions.decoder.weight": head(tied_to="nomic_bert.embeddings.word_embeddings.weight"),
        "cls.predictions.bias": head_bias(),
        "cls.predictions.decoder.bias": head_bias(tied_to="cls.predictions.bias"),
    },
    axes={**FIXED_HEAD_AXES, "head_dim": "head_dim"},
    norm="layer",
    epsilon_key="layer_norm_eps",
    placement="stream",
    fixed_head=True,
    objective="mlm",
    converted_files=True,
)
