"""A `train:` section before there is a run: all that Trainer makes of it is made once, for a model of one weight.

What cannot work in this loop is refused by name; what is out of range, or of another type than TrainingArguments says,
by its value; and whatever transformers, accelerate or torch raise while they build arguments, optimizer, scheduler,
data loader and trackers is the reason that they give.
"""

from __future__ import annotations

import importlib.util
import math
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import transformers
from transformers.training_args import OptimizerNames, log_levels

from lifelong.errors import UnknownNameError, did_you_mean
from lifelong.methods._context import uses_sharding
from lifelong.schema import shortened
from lifelong.train.arguments import training_arguments

CANNOT_WORK = {
    "hub_token": "a secret would be written into the run folder; set HF_TOKEN in the environment",
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"),
        "the run folder is the only place that is written; push a stage afterwards (lifelong push RUN)",
    ),
    "accelerator_config": "the order of the rows and how a step is divided among devices are the loop's",
    "use_liger_kernel": "it replaces the forward that the losses of this loop are computed in",
    "label_smoothing_factor": "the loss is that of `objective`, `inherit` and `methods`",
    "eval_on_start": "row -1 of the matrix is the model before the stream; `evaluate:` decides the rest",
    "auto_find_batch_size": "a step has the same sequences on every machine; raise gradient_accumulation_steps instead",
    "ignore_data_skip": "a resumed stage continues with the rows that it has not seen",
    "save_only_model": "a resumed stage needs the optimizer's state",
    "parallelism_config": "it is an object of accelerate; launch with `accelerate launch` instead",
}
UNUSABLE_VALUES = {
    "lr_scheduler_type": ("reduce_lr_on_plateau", "greedy"),
    "save_strategy": ("best",),
}
"""Values that follow an evaluation inside of Trainer; here `evaluate:` and the ledger decide."""
_BITSANDBYTES = ("bitsandbytes", "bitsandbytes")
OPTIMIZERS = {
    "bnb": _BITSANDBYTES, "paged": _BITSANDBYTES, "ademamix": _BITSANDBYTES, "w_8bit": _BITSANDBYTES,
    "lion": _BITSANDBYTES, "torch_4bit": ("torchao", "torchao"), "torch_8bit": ("torchao", "torchao"),
    "galore": ("galore_torch", "galore-torch"), "apollo": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"), "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free": ("schedulefree", "schedulefree"), "stable_adamw": ("optimi", "torch-optimi"),
}  # fmt: skip
"""Part of the name in `optim` -> module, and what pip calls it."""
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
# smallest value, largest value; a larger one asks for more memory than there is before the first step
RANGES: dict[str, tuple[float, float]] = {
    "per_device_train_batch_size": (1, 1e6),
    "gradient_accumulation_steps": (1, 1e6),
    "save_steps": (1e-9, math.inf),
    "logging_steps": (1e-9, math.inf),
    "adam_epsilon": (1e-45, 1),
    "max_grad_norm": (0, math.inf),
    "weight_decay": (0, math.inf),
    "learning_rate": (0, 1e9),
    "save_total_limit": (0, math.inf),
    "dataloader_num_workers": (0, 1024),
    "dataloader_prefetch_factor": (1, 1e6),
    "torch_empty_cache_steps": (1, math.inf),
}
OF_THE_DEVICE = ("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "torch_compile")
"""TrainingArguments asks for the device that these need."""
TRACKERS = {
    "azure_ml": ("azureml", "azureml-core"),
    "clearml": ("clearml", "clearml"),
    "codecarbon": ("codecarbon", "codecarbon"),
    "comet_ml": ("comet_ml", "comet-ml"),
    "dagshub": ("dagshub", "dagshub mlflow"),
    "dvclive": ("dvclive", "dvclive"),
    "flyte": ("flytekit", "flytekit"),
    "mlflow": ("mlflow", "mlflow"),
    "neptune": ("neptune", "neptune"),
    "swanlab": ("swanlab", "swanlab"),
    "trackio": ("trackio", "trackio"),
    "wandb": ("wandb", "wandb"),
}
"""Name in `report_to` -> module, and what pip calls it. TensorBoard comes as one of two modules: transformers looks."""


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(transformers.TrainingArguments)


def check_train_values(section: Mapping[str, Any], where: str = "train") -> Iterator[str]:
    """One line for every value of a `train:` section that cannot work, whatever the machine."""
    hints = _hints()
    for key, value in section.items():
        if value is None or key not in hints:
            continue
        if key in CANNOT_WORK and value not in (False, 0):
            yield f"{where}.{key}: cannot be used here: {CANNOT_WORK[key]}"
        elif value in UNUSABLE_VALUES.get(key, ()):
            yield f"{where}.{key}: {value} follows an evaluation inside of Trainer, and there is none; take another"
        elif key.endswith("checkpointing_kwargs") and isinstance(value, Mapping):
            yield from (
                str(UnknownNameError("setting", name, CHECKPOINTING, f"{where}.{key}"))
                for name in value
                if name not in CHECKPOINTING
            )
        elif key in ("log_level", "log_level_replica") and value not in (levels := [*log_levels, "passive"]):
            yield str(UnknownNameError("level", value, levels, f"{where}.{key}"))
        elif reason := _unfit(key, value, hints[key]):
            yield f"{where}.{key}: {reason}"


def _unfit(key: str, value: Any, hint: Any) -> str | None:
    """Why a value is not one of TrainingArguments' plain types, or is outside of what can work."""
    kinds = {get_origin(kind) or kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)}
    named = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)]
    names = [str(member.value) for kind in named for member in kind]
    if named and isinstance(value, str) and value not in names:
        return f"there is no {value!r}{did_you_mean(value, names)}"
    wanted = _wanted(key, value, kinds) if kinds <= {bool, int, float} else ""
    if kinds == {dict, str} and not isinstance(value, dict | str):  # a number would be opened, and closed, as a file
        wanted = "a mapping or the name of a file"
    return f"is {wanted}, not {shortened(value, 60)}" if wanted else None


def _wanted(key: str, value: Any, kinds: set[type]) -> str:
    """What a value should be; empty where it is."""
    if kinds == {bool}:
        return "" if isinstance(value, bool) or value in (0, 1) else "true or false"
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return "a number"
    least, most = RANGES.get(key, (-math.inf, math.inf))
    if not math.isfinite(number):
        return "a finite number"
    if kinds == {int} and number != int(number):
        return "a whole number"
    return f"at least {least:g}" if number < least else f"at most {most:g}" if number > most else ""


def check_trackers(section: Mapping[str, Any], where: str = "train") -> Iterator[str]:
    """One line for every tracker that is unknown, or whose package is not installed."""
    named = section.get("report_to")
    for name in named if isinstance(named, list) else () if named is None else (named,):
        module, package = TRACKERS.get(name, (None, None)) if isinstance(name, str) else (None, None)
        if module is not None and importlib.util.find_spec(module) is None:
            yield f"{where}.report_to: {name} is not installed here: pip install {package}"
        elif module is None and name not in ("none", "all", "tensorboard", "kubeflow"):
            yield str(UnknownNameError("tracker", name, [*TRACKERS, "tensorboard"], f"{where}.report_to"))


def check_packages(section: Mapping[str, Any], where: str = "train") -> Iterator[str]:
    """One line for a package that an optimizer or a launcher needs and that is not installed."""
    optim = str(section.get("optim"))
    known = optim in [kind.value for kind in OptimizerNames]
    needed = {named for part, named in OPTIMIZERS.items() if known and part in optim}
    wanted = [("optim", f"{optim} needs", *named) for named in sorted(needed)]
    if section.get("deepspeed"):
        wanted.append(("deepspeed", "needs", "deepspeed", "deepspeed"))
    for key, what, module, package in wanted:
        if importlib.util.find_spec(module) is None:
            yield f"{where}.{key}: {what} {module}, which is not installed here: pip install {package}"


def check_precision(section: Mapping[str, Any], where: str = "train") -> Iterator[str]:
    """One line for bfloat16 on a device without the units for it, which computes it many times slower than float32."""
    asked = [key for key in ("bf16", "bf16_full_eval") if section.get(key) is True]
    if asked and (missing := without_bfloat16_units(use_cpu=section.get("use_cpu") is True)):
        times = f"a product of matrices took {bfloat16_slowdown():.1f} times as long as in float32, measured now"
        yield f"{where}.{asked[0]}: {missing}: {times}; set {where}.{asked[0]}=false on this machine"


def slow_weights_note(*, use_cpu: bool) -> Iterator[str]:
    """A line on weights in bfloat16 where the units for it are missing: they are right there, and save memory alone."""
    if missing := without_bfloat16_units(use_cpu=use_cpu):
        yield (
            f"warning: the weights are in bfloat16, and {missing}: products take {bfloat16_slowdown():.3g} times as "
            "long as in float32; the same run in float32: --set model.dtype=float32"
        )


@cache
def bfloat16_slowdown(size: int = 512, rounds: int = 3) -> float:
    """Times of a bfloat16 product on this processor over those of a float32 one, measured here; the median ratio."""
    import torch

    operands = {kind: torch.ones(size, size, dtype=kind) for kind in (torch.float32, torch.bfloat16)}
    ratios = []
    for _ in range(rounds):
        times = []
        for operand in operands.values():
            started = time.perf_counter()
            operand @ operand
            times.append(time.perf_counter() - started)
        ratios.append(times[1] / times[0])
    return statistics.median(ratios)


def without_bfloat16_units(*, use_cpu: bool) -> str:
    """Why bfloat16 would be emulated on the device of a run; empty where it is not."""
    import torch

    if torch.accelerator.is_available() and not use_cpu:
        device = torch.accelerator.current_accelerator()
        if device is None or device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
            return ""
        return f"{torch.cuda.get_device_name()} has no bfloat16 units (fp16 is what it has)"
    arm = platform.machine() in ("arm64", "aarch64")
    if torch.ops.mkldnn._is_mkldnn_bf16_supported() if arm else torch.cpu._is_avx512_bf16_supported():
        return ""
    return "there is no GPU, and this processor has no bfloat16 units"


def rehearse_training(section: Mapping[str, Any]) -> None:
    """Build what Trainer builds of a section, and write nothing.

    Raises:
        Exception: whatever the libraries raise.
    """
    import torch

    arguments = training_arguments(section, output_dir=Path(), max_steps=100, seed=0)
    if uses_sharding(section) or arguments.optim_target_modules:  # needs the processes, or the model itself
        return
    # the one folder that it makes sure of is there: the current one
    trainer = transformers.Trainer(torch.nn.Linear(1, 1), arguments, train_dataset=[{"x": 0}] * 4)
    trainer.create_optimizer_and_scheduler(100)
    trainer.get_train_dataloader()
