"""The recipe's `train:` section as TrainingArguments, under their own names.

What the lifelong loop decides itself (length, order, output folder, seeds) may not be set there.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

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
    "remove_unused_columns": "the loop, which needs all columns",
    "resume_from_checkpoint": "the ledger",
    "eval_strategy": "`evaluate:`",
    "do_eval": "`evaluate:`",
    "load_best_model_at_end": "the ledger",
    "label_names": "the loop",
    "include_num_input_tokens_seen": "the cost ledger",
    "disable_tqdm": "the live display",
}


def check_train_section(section: Mapping[str, Any], where: str = "train") -> list[str]:
    """One line for every key of a `train:` section that is unknown or not the user's to set."""
    known = {field.name for field in dataclasses.fields(transformers.TrainingArguments) if field.init}
    allowed = sorted(known - set(DECIDED_BY_THE_LOOP))
    lines = []
    for key in section:
        if key in DECIDED_BY_THE_LOOP:
            lines.append(f"{where}.{key}: is decided by {DECIDED_BY_THE_LOOP[key]}")
        elif key not in known:
            lines.append(f"{where}.{key}: is no TrainingArguments field{did_you_mean(key, allowed, limit=0)}")
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
    try:
        arguments = transformers.TrainingArguments(
            output_dir=str(output_dir),
            max_steps=max_steps,
            seed=seed,
            data_seed=seed,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            disable_tqdm=True,
            **{"save_strategy": "no", **values},
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"train: {' '.join(str(error).split())}") from None
    # without an accelerator pinning is not possible and only earns a warning
    if arguments.device.type == "cpu":
        arguments.dataloader_pin_memory = False
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    return arguments


def tokens_per_step(arguments: transformers.TrainingArguments, sequence_length: int) -> int:
    """Tokens of one optimizer step over all devices."""
    return blocks_per_step(arguments) * sequence_length


def blocks_per_step(arguments: transformers.TrainingArguments) -> int:
    """Sequences of one optimizer step over all devices."""
    return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)


def _number(value: Any) -> Any:
    """YAML reads `5e-4` as text; read it as the number it is."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
