"""Cost of a model: parameters and FLOPs, from its shapes alone (it may live on the meta device).

FLOPs count a multiplication and an addition separately. A backward pass costs twice a forward pass, so a
training step is three forward passes and a teacher's step one.

Source: the accounting of Kaplan et al. 2020 (arXiv 2001.08361, section 2.1) with the attention term kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lifelong.lm.objective import objective_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BACKWARD_FACTOR = 2


def num_parameters(model: PreTrainedModel) -> int:
    """Parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def forward_flops_per_token(model: PreTrainedModel, sequence_length: int, objective: str = "clm") -> float:
    """FLOPs of one forward pass over one token in a sequence of `sequence_length` tokens.

    Matrices cost 2 FLOPs a weight; of a layer's experts only those that a token is routed to count; the
    output embedding counts even where it is tied; attention costs 4 FLOPs a channel and attended
    position, and a causal token attends to half of its sequence on average.
    """
    from torch import nn

    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    config = model.config
    matrices = 0.0
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2 and id(parameter) not in tables:
            matrices += parameter.numel() * _active_share(config, name)
    head = model.get_output_embeddings()
    if head is not None and id(head.weight) in tables:
        matrices += head.weight.numel()
    attended = objective_of(objective).attended_share * sequence_length
    channels = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return float(2.0 * matrices + 4.0 * config.num_hidden_layers * attended * channels)


def training_flops_per_token(model: PreTrainedModel, sequence_length: int, objective: str = "clm") -> float:
    """FLOPs of a forward and a backward pass over one token."""
    return (1 + BACKWARD_FACTOR) * forward_flops_per_token(model, sequence_length, objective)


def head_flops_per_token(model: PreTrainedModel) -> float:
    """FLOPs of projecting one token to the vocabulary."""
    head = model.get_output_embeddings()
    return 0.0 if head is None else 2.0 * head.weight.numel()


def _active_share(config: Any, name: str) -> float:
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not experts or ".experts." not in name:
        return 1.0
    return float(config.num_experts_per_tok) / float(experts)
