"""Tiny models and packed batches for tests of the loss inside a model's forward."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCAB = 50
SIZES = {"vocab_size": VOCAB, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 32}


def build(
    objective: str, seed: int = 0, hidden_size: int = 32, dtype: torch.dtype = torch.float32, **extra: Any
) -> Any:
    """A LLaMA for clm, a BERT for mlm, without dropout."""
    torch.manual_seed(seed)
    name = "llama" if objective == "clm" else "bert"
    quiet = {} if objective == "clm" else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.AutoConfig.for_model(
        name, **{**SIZES, "hidden_size": hidden_size, "intermediate_size": 48, **quiet, **extra}
    )
    auto = transformers.AutoModelForCausalLM if objective == "clm" else transformers.AutoModelForMaskedLM
    return auto.from_config(config).to(dtype)


def packed_batch(objective: str, rows: int = 4, seed: int = 1) -> dict[str, torch.Tensor]:
    """Rows of 24 tokens: every other one with documents of 9, 7 and 5 tokens and padding, the rest of one document."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (rows, 24), generator=generator)
    segments, positions = torch.ones(rows, 24, dtype=torch.long), torch.arange(24).repeat(rows, 1)
    segments[::2] = torch.tensor([1] * 9 + [2] * 7 + [3] * 5 + [0] * 3)
    positions[::2] = torch.tensor([*range(9), *range(7), *range(5), *range(3)])
    labels = ids.clone()
    labels[positions == 0] = -100
    labels[segments == 0] = -100
    if objective == "mlm":
        hidden = torch.rand(rows, 24, generator=generator) < 0.3
        labels[~hidden] = -100
        ids[hidden & (labels != -100)] = 2
    return {
        "input_ids": ids, "labels": labels, "segment_ids": segments, "position_ids": positions,
        "domain_ids": torch.arange(rows) % 3, "is_replay": torch.arange(rows) % 2 == 1,
    }  # fmt: skip
