"""Adam's moments from stage to stage, through the growth between them: the recipe's `carry_optimizer`.

A growth maps old weights w to W = A w + c, with the function kept, so that dL/dw = A^T dL/dW. Adam's first moment is a
mean of gradients and goes by the same dual; the second is a mean of squared ones and goes by the dual with its factors
squared, because the square of s g is s^2 g^2 (see `ExpansionMap.apply_gradients`). New entries begin with a zero first
moment, as nothing is known of their gradient, and with the mean of the old second ones: with a zero there, the first
gradient would be divided by next to nothing. Step counts stay: moments that are means of many gradients must not be
divided by the correction for the first few.

Source: Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1; docs/design/expansion.md, "Gradients".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from lifelong.expand import ExpansionMap
from lifelong.expand.attached import grow_optimizer_state
from lifelong.expand.lazy import tied_names
from lifelong.ledger.folder import StageFolder
from lifelong.methods._method import Method, stock_parameters

Moments = dict[str, dict[str, Tensor]]
ADAM = ("adamw_torch", "adamw_torch_fused")
"""Values of `train.optim` whose state is carried; all of them are one algorithm with one state."""


@dataclass
class CarriedMoments(Method):
    """Puts the moments of the phase before into a fresh optimizer, and hands out what they have become."""

    moments: Moments = field(default_factory=dict)

    def begin_step(self, model: PreTrainedModel, step: int) -> None:
        """Fill the optimizer before the first step; a resumed phase has its own state already."""
        for name, parameter in _by_name(model) if step == 0 else ():
            if name in self.moments:
                self.optimizer.state[parameter] = {
                    key: value.clone() if key == "step" else value.to(parameter.device)
                    for key, value in self.moments[name].items()
                }
        self.moments = {}

    def write(self, model: PreTrainedModel, path: Path) -> None:
        """The moments as they are now, by parameter name, as safetensors."""
        save_file(
            {
                f"{name}|{key}": value.detach().cpu().contiguous()
                for name, parameter in _by_name(model)
                for key, value in self.optimizer.state.get(parameter, {}).items()
                if isinstance(value, Tensor)
            },
            path,
        )


def read_moments(path: Path) -> Moments:
    """Inverse of `CarriedMoments.write`."""
    moments: Moments = {}
    for entry, value in load_file(path).items():
        name, _, key = entry.rpartition("|")
        moments.setdefault(name, {})[key] = value
    return moments


def moments_beside(checkpoint: str) -> Path:
    """Where the moments of a stage's model or trunk lie; looks at nothing."""
    folder = Path(checkpoint)
    return (folder.parent if folder.name == StageFolder.model.name else folder) / StageFolder.moments.name


def grown_moments(moments: Mapping[str, Mapping[str, Any]], mapping: ExpansionMap, model: PreTrainedModel) -> Moments:
    """Moments of the model before a growth at the size of `model`."""
    parameters = {name: torch.empty(0, dtype=value.dtype) for name, value in _by_name(model)}
    return grow_optimizer_state(moments, mapping, parameters)


def check_carry(
    sections: Mapping[str, Mapping[str, Any]], methods: Sequence[tuple[str, Method]], *, sharded: bool
) -> Iterator[str]:
    """A line for everything in a run that moments cannot be carried through.

    Args:
        sections: TrainingArguments by their path in the recipe.
        methods: of the recipe, with their names.
        sharded: devices hold a part of each parameter only.
    """
    if sharded:
        yield (
            "carry_optimizer: this run shards parameters and moments over devices (FSDP or ZeRO), and only whole ones "
            "go through a growth; launch it with plain data parallelism, or leave carry_optimizer out"
        )
    for where, section in sections.items():
        if (optimizer := section.get("optim")) is not None and str(optimizer) not in ADAM:
            yield (
                f"carry_optimizer: carries the moments of AdamW ({' or '.join(ADAM)}), and {where}.optim is "
                f"{optimizer!r}, whose state has no map; leave one of the two out"
            )
    for name, method in methods:
        if method.adds_parameters:
            yield (
                f"carry_optimizer: methods.{name} trains parameters of its own, which are gone when the next stage "
                "begins; leave one of the two out"
            )


def _by_name(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters by the names that a growth's map has for them: of tied ones that of the values' owner."""
    owners = tied_names(model)
    for name, parameter in stock_parameters(model).items():
        yield owners.get(name, name), parameter
