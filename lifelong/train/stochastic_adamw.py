"""AdamW for weights that are held in bfloat16, which has eight bits of mantissa.

A step of Adam moves a weight by about the learning rate. Where that is less than 1/512 of the weight, the nearest
bfloat16 number is the old one: the step is lost, and so is every one after it. Here the exact sum is rounded up or down
by chance, the more probably to the nearer side, so that in the mean the weight is where it should be. The moments are
rounded in the same way: the second one decays by `1 - beta2` a step, which with 0.999 is less than bfloat16 can tell.

What is random is a function of (seed, step) alone: a stage that is resumed goes on to the same bits, and processes that
hold the same weights round them alike.

Sources: Gupta et al. 2015 (arXiv 1502.02551), section 3, for the rounding; Zamirai et al. 2020 (arXiv 2010.06192) for
training with weights in bfloat16; Loshchilov and Hutter 2019 (arXiv 1711.05101), algorithm 2, for AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lifelong.lm.rounding import put_rounded
from lifelong.stream.ordering import key_of

CHUNK = {"cpu": 1 << 18, "other": 1 << 22}
"""Entries that are stepped at a time, in float32: what a processor's cache holds, or enough for an accelerator."""
CHUNK_BYTES = 52
"""Of an entry while it is stepped: its four numbers and their temporaries, and the random bits."""


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW whose state has the dtype of its parameter, rounded by chance where that is bfloat16.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second.
        weight_decay: decoupled.
        seed: of the rounding.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient."""
        loss = closure() if closure is not None else None
        generators: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["step"] += 1
                held = [_local(value) for value in (parameter, state["exp_avg"], state["exp_avg_sq"])]
                device = held[0].device
                if device not in generators:
                    generators[device] = torch.Generator(device).manual_seed(self._key(parameter, state["step"]))
                _step(held, _local(parameter.grad), group, float(state["step"]), generators[device])
        return loss

    def _key(self, parameter: Tensor, step: Tensor) -> int:
        """Seed of a step's random bits; a process that holds a part of each parameter has its own."""
        rank = torch.distributed.get_rank() if _local(parameter) is not parameter else 0
        # hashed: of a seed, the generator of the CPU takes the lower half alone
        return key_of(self.seed, "stochastic rounding", int(step), rank)


def _local(value: Tensor) -> Tensor:
    """The part of a sharded tensor that is here (FSDP2)."""
    local: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return local


def _step(held: list[Tensor], gradient: Tensor, group: dict[str, Any], step: float, generator: torch.Generator) -> None:
    """Algorithm 2 of Loshchilov and Hutter, in float32, on some entries after the other."""
    (beta1, beta2), rate = group["betas"], group["lr"]
    corrections = 1 - beta1**step, (1 - beta2**step) ** 0.5
    for (weight, first, second), part in _chunks(held, gradient):
        g = part.float()
        m = first.float().lerp_(g, 1 - beta1)
        v = second.float().mul_(beta2).addcmul_(g, g, value=1 - beta2)
        w = weight.float() * (1 - rate * group["weight_decay"])
        w.addcdiv_(m, v.sqrt().div_(corrections[1]).add_(group["eps"]), value=-rate / corrections[0])
        put_rounded([(weight, w), (first, m), (second, v)], generator)


def _chunks(held: list[Tensor], gradient: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
    flat = [value.view(-1) for value in (*held, gradient.contiguous())]
    size = CHUNK["cpu" if gradient.device.type == "cpu" else "other"]
    for start in range(0, flat[0].numel(), size):
        *states, part = (value[start : start + size] for value in flat)
        yield states, part
