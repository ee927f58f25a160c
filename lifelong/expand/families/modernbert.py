"""ModernBERT: LayerNorm before the sublayers, but the embeddings pass one too; fused projections, rotary heads."""

from lifelong.expand.family import (
    Family,
    embedding,
    final_norm,
    head,
    head_bias,
    mlm_dense,
    mlm_norm,
    pre_norm,
    reader,
    reader_bias,
    stream_norm,
    writer,
    writer_bias,
)
from lifelong.expand.layouts import FIXED_HEAD_AXES

BLOCK = "model.layers.{layer}."
FAMILY = Family(
    name="modernbert",
    model_types=("modernbert",),
    parameters={
        "model.embeddings.tok_embeddings.weight": embedding("vocab"),
        "model.embeddings.norm.weight": stream_norm("embedding"),
        "model.embeddings.norm.bias": stream_norm("embedding", bias=True),
        BLOCK + "attn_norm.weight": pre_norm(),
        BLOCK + "attn_norm.bias": pre_norm(bias=True),
        BLOCK + "attn.Wqkv.weight": reader("q", "k", "v"),
        BLOCK + "attn.Wqkv.bias": reader_bias("q", "k", "v"),
        BLOCK + "attn.Wo.weight": writer("o"),
        BLOCK + "attn.Wo.bias": writer_bias("o"),
        BLOCK + "mlp_norm.weight": pre_norm(),
        BLOCK + "mlp_norm.bias": pre_norm(bias=True),
        BLOCK + "mlp.Wi.weight": reader("ffn", "ffn"),
        BLOCK + "mlp.Wi.bias": reader_bias("ffn", "ffn"),
        BLOCK + "mlp.Wo.weight": writer("ffn"),
        BLOCK + "mlp.Wo.bias": writer_bias("ffn"),
        "model.final_norm.weight": final_norm(),
        "model.final_norm.bias": final_norm(bias=True),
        "head.dense.weight": mlm_dense(),
        "head.dense.bias": mlm_dense(bias=True),
        "head.norm.weight": mlm_norm(),
        "head.norm.bias": mlm_norm(bias=True),
        "decoder.weight": head(tied_to="model.embeddings.tok_embeddings.weight"),
        "decoder.bias": head_bias(),
    },
    axes=FIXED_HEAD_AXES,
    norm="layer",
    placement="embedding",
    fixed_head=True,
    objective="mlm",
)
