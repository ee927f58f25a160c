"""LoRA: a domain is learned by low-rank additions to the weights, which are merged when the stage is done.

Every stage has an adapter of its own, laid beside its model as `adapter/`: `PeftModel.from_pretrained(base, adapter)`
on the model that the stage began with gives the stage's. A randomly initialised model is trained whole first. Adapters
are peft's, in float32 whatever the base; the base may be held in less (`base`), in four bits as QLoRA does.

Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1; Dettmers et al. 2023 (arXiv 2305.14314).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from lifelong.errors import InputError, did_you_mean
from lifelong.lm.rounding import put_rounded
from lifelong.methods._frozen_base import BASES, FOUR_BITS, four_bit_lines, hold_base, is_quantised, restore_base
from lifelong.methods._method import Method, StageContext

ADAPTER, FOLDER = "domain", "adapter"
EVERY = "all-linear"
TASKS = {"clm": "CAUSAL_LM", "mlm": None}


@dataclass
class Plugin(Method):
    """Settings: `rank`, `alpha`, `dropout`, `targets`, `base`.

    `alpha` over the rank is the factor of the additions, which the strength multiplies; `targets` are ends of the names
    of the layers that get some; `base` says how the frozen weights are held while a stage is trained.
    """

    exclusive: ClassVar[bool] = True
    adds_parameters: ClassVar[bool] = True

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | list[str] = field(default=EVERY, metadata={"list": True})
    base: str = "same"
    adapted: Any = field(default=None, init=False)
    factors: dict[str, Tensor] = field(default_factory=dict, init=False)
    written: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"methods.lora.rank: must be at least 1, not {self.rank}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"methods.lora.dropout: must be at least 0 and below 1, not {self.dropout}")
        if self.base not in BASES:
            raise InputError(f"methods.lora.base: one of {', '.join(BASES)}, not {self.base!r}")
        if self.targets != EVERY and not (isinstance(self.targets, list) and self.targets):
            raise InputError(f"methods.lora.targets: {EVERY}, or a list like [q_proj, v_proj], not {self.targets!r}")

    def check_here(self) -> Iterator[str]:
        """Four bits need a library."""
        if self.base == FOUR_BITS:
            yield from four_bit_lines("methods.lora.base")

    def check_model(self, model: Any) -> Iterator[str]:
        """Every target is the end of the name of a linear layer."""
        from transformers.pytorch_utils import Conv1D

        names = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D)]
        for target in self.targets if isinstance(self.targets, list) else ():
            if not any(name == target or name.endswith(f".{target}") for name in names):
                ends = sorted({name.rpartition(".")[2] for name in names})
                yield f"methods.lora.targets: no linear layer is called {target!r}{did_you_mean(target, ends, limit=0)}"
        heads = [name for name in names if model.get_submodule(name) is model.get_output_embeddings()]
        if any(name.endswith(target) for name in heads for target in self.targets if self.targets != EVERY):
            yield "methods.lora.targets: the output embedding gets no additions here; leave it out"

    def _sizes(self) -> dict[str, Any]:
        return {"r": self.rank, "lora_alpha": self.strength * self.alpha, "lora_dropout": self.dropout}

    def attach(self, model: Any, seed: int = 0) -> Any:
        """Put an adapter that adds nothing yet on every targeted layer, in float32; freeze the rest."""
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel

        config = LoraConfig(**self._sizes(), target_modules=self.targets)
        setattr(model, "is_loaded_in_4bit", is_quantised(model))  # noqa: B010  # peft looks at it
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = LoraModel(model, {ADAPTER: config}, ADAPTER)
        model.__dict__.pop(
            "is_loaded_in_4bit", None
        )  # Trainer would refuse it: it knows no adapters but peft's own model
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return adapted

    def begin_stage(self, context: StageContext) -> None:
        """Hold the base, and add to it."""
        self.adapted, self.factors = None, {}
        if context.has_learned:
            hold_base(context.model, self.base)
            self.adapted = self.attach(context.model, context.seed)

    def end_stage(self, context: StageContext) -> None:
        """Merge into the weights that the stage began with, and leave a stock model."""
        if self.adapted is None:
            return
        from peft.tuners.lora import LoraLayer

        model, config = context.model, self.adapted.peft_config[ADAPTER]
        self.factors = {name: value.detach().clone() for name, value in model.named_parameters() if ".lora_" in name}
        self.written = {
            "target_modules": sorted(config.target_modules),
            "base_model_name_or_path": context.base(),
            "task_type": TASKS[context.objective],
        }
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        with torch.no_grad():
            deltas = {name: layer.get_delta_weight(ADAPTER) for name, layer in layers.items()}
        self.adapted.unload()
        for attribute in ("peft_config", "active_adapter"):
            model.__dict__.pop(attribute, None)
        if self.base != "same":
            assert context.start is not None, "the stage knows where it began"
            restore_base(model, context.start())
        self._merge(model, deltas, context.seed)
        model.requires_grad_(True)
        self.adapted = None

    @torch.no_grad()
    def _merge(self, model: Any, deltas: Mapping[str, Tensor], seed: int) -> None:
        """Rounded by chance where the weights are in bfloat16: the nearest number is often the old one."""
        generators: dict[torch.device, torch.Generator] = {}
        for name, delta in deltas.items():
            weight = model.get_submodule(name).weight
            generator = generators.setdefault(weight.device, torch.Generator(weight.device).manual_seed(seed))
            put_rounded([(weight, weight.float() + delta.to(weight.device))], generator)

    def write_files(self, folder: Path) -> None:
        """The adapter of the stage, as peft reads it."""
        if not self.factors:
            return
        from peft import LoraConfig

        out = folder / FOLDER
        config = LoraConfig(**self._sizes(), inference_mode=True, **self.written)
        config.target_modules = self.written["target_modules"]  # a set is written in any order
        config.save_pretrained(str(out))
        named = {
            f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": value.cpu().contiguous()
            for name, value in self.factors.items()
        }
        save_file(named, out / "adapter_model.safetensors", metadata={"format": "pt"})
