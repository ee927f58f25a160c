"""The recipe's `train:` section as TrainingArguments, under their own names.

What the lifelong loop decides itself (length, order, output folder, seeds) may not be set there.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from lifelong import distributed
from lifelong.errors import InputError, did_you_mean

DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "per_device_train_batch_size": 16,
    "logging_steps": 10,
    "save_total_limit": 2,
    "report_to": "none",
}

DECIDED_BY_THE_LOOP = {
    "output_dir": "the run folder (--out)",
    "max_steps": "`tokens` of the stage",
    "num_train_epochs": "`tokens` of the stage",
    "seed": "`seed` of the recipe",
    "data_seed": "`seed` of the recipe",
    "train_sampling_strategy": "the stream's own order",
    "length_column_name": "the stream's own order",
    "dataloader_in_order": "the stream's own order",
    "average_tokens_across_devices": "the loop, whose loss is that of a whole step over all devices",
    "local_rank": "the launcher",
    "restore_callback_states_from_checkpoint": "the loop, which keeps the state of a phase itself",
    "enable_jit_checkpoint": "the loop, which saves on SIGTERM itself",
    "remove_unused_columns": "the loop, which needs all columns",
    "resume_from_checkpoint": "the ledger",
    "eval_strategy": "`evaluate:`",
    **dict.fromkeys(
        (
            "do_eval", "do_predict", "eval_steps", "eval_delay", "per_device_eval_batch_size", "prediction_loss_only",
            "eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics",
            "batch_eval_metrics", "metric_for_best_model", "greater_is_better",
        ),
        "`evaluate:`",
    ),
    "do_train": "the loop, which trains",
    "load_best_model_at_end": "the ledger",
    "label_names": "the loop",
    "include_num_input_tokens_seen": "the cost ledger",
    "disable_tqdm": "the live display",
    "hub_token": "the environment (HF_TOKEN): a recipe is written into the run folder, which is handed on",
    "ddp_backend": "the loop, which connects its processes before it reads the recipe",
    "ddp_timeout": "the loop, which connects its processes before it reads the recipe",
}  # fmt: skip


def check_train_section(section: Mapping[str, Any], where: str = "train") -> list[str]:
    """One line for every key of a `train:` section that is unknown or not the user's to set."""
    known = {field.name for field in dataclasses.fields(transformers.TrainingArguments) if field.init}
    allowed = sorted(known - set(DECIDED_BY_THE_LOOP))
    lines = []
    for key in section:
        if key in DECIDED_BY_THE_LOOP:
            lines.append(f"{where}.{key}: is decided by {DECIDED_BY_THE_LOOP[key]}")
        elif key not in known:
            lines.append(f"{where}.{key}: is not a TrainingArguments field{did_you_mean(key, allowed, limit=0)}")
    return lines


def training_arguments(
    section: Mapping[str, Any], *, output_dir: Path, max_steps: int, seed: int
) -> transformers.TrainingArguments:
    """TrainingArguments of one phase of a stage.

    Raises:
        InputError: a key that is not known, or a value that TrainingArguments refuses.
    """
    if lines := check_train_section(section):
        raise InputError("\n".join(lines))
    values = {**DEFAULTS, **{key: value for key, value in section.items() if value is not None}}
    values = {key: _number(value) for key, value in values.items()}
    values |= micro_batches(values, distributed.world_size())
    if distributed.world_size() > 1 and not _has_accelerator():
        values["use_cpu"] = True  # accelerate takes processes without an accelerator for as many runs of their own
    try:
        arguments = transformers.TrainingArguments(
            output_dir=str(output_dir),
            max_steps=max_steps,
            seed=seed,
            data_seed=seed,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            disable_tqdm=True,
            **{"save_strategy": "steps" if "save_steps" in values else "no", **values},
        )
    except Exception as error:  # of transformers, accelerate, torch, deepspeed: each its own
        raise InputError(f"train: {' '.join(str(error).split())}") from None
    arguments._n_gpu = min(1, arguments.n_gpu)  # several devices are for several processes, not for DataParallel
    # without an accelerator pinning is not possible and only earns a warning
    if arguments.device.type == "cpu":
        arguments.dataloader_pin_memory = False
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    return arguments


def check_processes(section: Mapping[str, Any]) -> None:
    """Refuse what the processes that were launched cannot do with a `train:` section.

    Raises:
        InputError: a step that they cannot share; or parameters in parts where, or as, that is not right.
    """
    micro_batches(section, distributed.world_size())
    config = section.get("fsdp_config") or {}
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if launched or section.get("fsdp"):
        version = os.environ.get("FSDP_VERSION", "1") if launched else config.get("version", 2)
        if int(version) != 2:
            raise InputError(
                "FSDP: version 1 flattens the parameters, which nothing here was tested with; write fsdp_version: 2 "
                "into the configuration of accelerate"
            )
        if not _has_accelerator():
            raise InputError(
                "FSDP: accelerate shards over accelerators only, and this machine has none; launch without FSDP: "
                "several processes then share the batches and each holds the whole model"
            )
    if _zero_stage(section) == 3:
        raise InputError(
            "DeepSpeed: ZeRO-3 hides the parameters from the growth, the probes and the teacher; take FSDP2 "
            "(docs: launch on many devices), which shards the same, or ZeRO stage 1 or 2"
        )


def _zero_stage(section: Mapping[str, Any]) -> int | None:
    """Stage of ZeRO, where DeepSpeed is asked for by the recipe or by the launcher."""
    named: Any = section.get("deepspeed")
    if isinstance(named, str) and Path(named).is_file():
        named = json.loads(Path(named).read_text(encoding="utf-8"))
    if isinstance(named, Mapping):
        return int(named.get("zero_optimization", {}).get("stage", 0))
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        if (config := os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")) and Path(config).is_file():
            return _zero_stage({"deepspeed": config})
        return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    return None


def micro_batches(section: Mapping[str, Any], processes: int) -> dict[str, int]:
    """Micro-batches of an optimizer step: the same sequences in every step, whatever the number of processes.

    A recipe says by `per_device_train_batch_size` times `gradient_accumulation_steps` how many sequences a step has.
    More processes first share the accumulation; where that is not enough, each takes fewer sequences at a time.

    Raises:
        InputError: the sequences of a step cannot be divided equally.
    """
    step = sequences_per_step(section)
    if processes == 1 or step is None:
        return {}
    size = section.get("per_device_train_batch_size", DEFAULTS["per_device_train_batch_size"])
    if step % processes:
        known = [count for count in range(1, step + 1) if step % count == 0 and count < 2 * processes]
        raise InputError(
            f"train: an optimizer step of {step} sequences (per_device_train_batch_size {int(size)} x "
            f"gradient_accumulation_steps {step // int(size)}) cannot be divided among {processes} processes; start "
            f"{' or '.join(map(str, known[-3:]))}, or set gradient_accumulation_steps to a multiple of {processes}"
        )
    own = step // processes
    taken = max(count for count in range(1, min(int(size), own) + 1) if own % count == 0)
    return {"per_device_train_batch_size": taken, "gradient_accumulation_steps": own // taken}


def sequences_per_step(section: Mapping[str, Any]) -> int | None:
    """Sequences of an optimizer step as a `train:` section says; None where it says no number."""
    size = section.get("per_device_train_batch_size", DEFAULTS["per_device_train_batch_size"])
    accumulation = section.get("gradient_accumulation_steps", 1)
    return int(size) * int(accumulation) if _is_count(size) and _is_count(accumulation) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and value == int(value) and value >= 1


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def tokens_per_step(arguments: transformers.TrainingArguments, sequence_length: int) -> int:
    """Tokens of one optimizer step over all devices."""
    return blocks_per_step(arguments) * sequence_length


def blocks_per_step(arguments: transformers.TrainingArguments) -> int:
    """Sequences of one optimizer step over all devices; the same number however many there are."""
    return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)


def _number(value: Any) -> Any:
    """YAML reads `5e-4` as text; read it as the number it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
