"""The optimizer of a stage, by the precision of the weights that it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from lifelong.train.carried_moments import ADAM
from lifelong.train.stochastic_adamw import StochasticAdamW

QUANTISED = ("adamw_torch_8bit", "adamw_torch_4bit")
"""Of torchao, with moments in blocks of few bits."""
ROUNDED = "bf16_stochastic_round"


def rounding_optimizer(
    model: PreTrainedModel, args: transformers.TrainingArguments
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """AdamW with stochastic rounding, where bfloat16 weights are trained with AdamW; None where Trainer chooses."""
    low = any(value.dtype == torch.bfloat16 for value in model.parameters() if value.requires_grad)
    if not low or str(getattr(args.optim, "value", args.optim)) not in ADAM:
        return None
    betas = (args.adam_beta1, args.adam_beta2)
    return StochasticAdamW, {"lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon, "seed": args.seed}


def check_optimizer(section: Mapping[str, Any], where: str = "train") -> Iterator[str]:
    """A line for an optimizer that rounds weights in bfloat16 to the nearest, which loses every small step."""
    named = str(section.get("optim") or ADAM[0])
    if named in ADAM or (named in QUANTISED and _rounds(section.get("optim_args"))):
        return
    if named in QUANTISED:
        yield f'{where}.optim_args: weights in bfloat16 lose small steps; add optim_args: "{ROUNDED}=True"'
        return
    yield (
        f"{where}.optim: {named!r} rounds weights in bfloat16 to the nearest number, which loses small steps; take "
        f'{" or ".join(ADAM)} (rounded by chance), {QUANTISED[0]} with optim_args: "{ROUNDED}=True", or model.dtype: '
        "float32"
    )


def _rounds(arguments: Any) -> bool:
    given = dict(item.split("=", 1) for item in str(arguments or "").replace(" ", "").split(",") if "=" in item)
    return given.get(ROUNDED, "").lower() in ("true", "1", "yes", "y", "on", "t")
