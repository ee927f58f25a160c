"""The frozen base of an adapter in less memory: in another precision, or in four bits (QLoRA).

What it is held in is for the time of a stage: afterwards the weights are read again from where the stage began, so that
holding them in less has cost the steps some precision and the model none.

Source: Dettmers et al. 2023 (arXiv 2305.14314), section 3: NF4 and the quantisation of its constants.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lifelong.errors import InputError
from lifelong.lm.checkpoint import cast_weights

FOUR_BITS = "4bit"
BASES = ("same", "float32", "bfloat16", FOUR_BITS)
BLOCK, NESTED = 64, 256
"""Weights that share a constant, and constants that share one of theirs."""
BYTES_PER_WEIGHT = 0.5 + 1 / BLOCK + 4 / (BLOCK * NESTED)


def four_bit_lines(where: str) -> Iterator[str]:
    """A line where this machine cannot hold weights in four bits."""
    if importlib.util.find_spec("bitsandbytes") is None:
        yield f"{where}: {FOUR_BITS} is held by bitsandbytes, which is not installed: pip install 'lifelong[4bit]'"
    elif torch.accelerator.is_available() and getattr(torch.accelerator.current_accelerator(), "type", "") == "mps":
        yield f"{where}: bitsandbytes has no kernels for {FOUR_BITS} on this device; take bfloat16"


def hold_base(model: PreTrainedModel, base: str) -> None:
    """Hold all weights as `base` says, in place; frozen ones only may be.

    Raises:
        InputError: four bits are for plain linear layers, and the model has none.
    """
    if base in ("float32", "bfloat16"):
        cast_weights(model, base)
    elif base == FOUR_BITS:
        _quantise(model)


def quantised_layers(model: Any) -> dict[str, nn.Linear]:
    """Linear layers by name that four bits are for: all but the output embedding."""
    head = model.get_output_embeddings()
    return {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear and layer is not head}


def is_quantised(model: Any) -> bool:
    """Whether any layer is held in four bits."""
    return any(type(layer).__name__ == "Linear4bit" for layer in model.modules())


def _quantise(model: PreTrainedModel) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    layers = quantised_layers(model)
    if not layers:
        raise InputError(f"methods.lora.base: {model.config.model_type!r} has no plain linear layers to hold in 4 bits")
    settings = {"quant_type": "nf4", "compress_statistics": True}
    for name, layer in layers.items():
        held = Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=layer.weight.dtype,
            device="meta", **settings,
        )  # fmt: skip
        held.weight = Params4bit(layer.weight.data, requires_grad=False, **settings)
        held.bias = layer.bias
        model.set_submodule(name, held.to(layer.weight.device))


def restore_base(model: PreTrainedModel, original: PreTrainedModel) -> None:
    """Give a model the weights of the one that it was held instead of, in place."""
    device = next(value.device for value in model.parameters() if value.is_floating_point())
    for name in quantised_layers(original):
        if type(model.get_submodule(name)) is not nn.Linear:
            model.set_submodule(name, original.get_submodule(name).to(device))
    for name, value in original.named_parameters():
        model.get_parameter(name).data = value.data.to(device)
    model.tie_weights()
