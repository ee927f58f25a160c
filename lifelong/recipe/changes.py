"""Differences between two recipes, and which of them a run folder accepts.

A folder binds what changes figures. What says only on which machine, in which pieces and how watched a stage is trained
(`FREE`) may change at any time, in the middle of a stage too, and no trained step is lost. Before the first stage is
committed everything may change: what was made of the other recipe is made anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lifelong.ledger.ledger import Ledger
from lifelong.recipe.recipe import Recipe
from lifelong.train.arguments import sequences_per_step

FREE = {
    "activations": (
        "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
        "activation_checkpointing_kwargs", "torch_empty_cache_steps",
    ),
    "trackers": (
        "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
        "log_level", "log_level_replica", "log_on_each_node",
    ),
    "saving": ("save_steps", "save_strategy", "save_total_limit", "save_on_each_node"),
    "workers": (
        "dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers",
        "dataloader_pin_memory", "dataloader_multiprocessing_context",
    ),
    "devices": (
        "use_cpu", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph",
    ),
}  # fmt: skip
"""Keys of `train:` that change no figure, by what they are about. The dtype of a teacher's cache is no key at all."""
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
"""How a step is cut; free where the sequences of a step stay as many."""
HOW_TO_TRAIN = {"replay", "budget", "inherit", "recover", "methods", "train", "lr", "carry_optimizer"}
"""Sections that only the stages to come depend on: neither the initial model nor what is held out."""
_TRAIN = re.compile(r"(?:stages\[(?P<stage>\d+)\]\.)?train\.(?P<key>\w+)")


def binding_changes(existing: Recipe, recipe: Recipe) -> list[str]:
    """Dotted paths at which two recipes differ in what changes figures."""
    free = {key for keys in FREE.values() for key in keys}
    if len(existing.stages) == len(recipe.stages) and all(
        sequences_per_step({**existing.train, **old.train}) == sequences_per_step({**recipe.train, **new.train})
        for old, new in zip(existing.stages, recipe.stages, strict=True)
    ):
        free |= set(BATCH)

    def binds(path: str) -> bool:
        match = _TRAIN.match(path)
        return match is None or match["key"] not in free

    return [path for path in differing_keys(existing.to_plain(), recipe.to_plain()) if binds(path)]


def keeps_beginning(existing: Recipe, recipe: Recipe, different: Sequence[str]) -> bool:
    """Whether the initial model and what is held out are those of both recipes."""
    return existing.evaluation_tokens == recipe.evaluation_tokens and all(map(_is_to_come, different))


def can_amend(ledger: Ledger, different: Sequence[str]) -> bool:
    """Whether keys that bind may change: no stage is committed, or the next broke its budget and they concern it."""
    done = len(ledger.stages)
    return not done or (ledger.folder.was_rejected(done) and all(_is_to_come(key, done) for key in different))


def _is_to_come(key: str, done: int = 0) -> bool:
    """Whether a key says how stages from number `done` on are trained."""
    stage = re.match(r"stages\[(\d+)\]\.(tokens|train|select)", key)
    return int(stage[1]) >= done if stage else re.split(r"[.\[]", key)[0] in HOW_TO_TRAIN


def differing_keys(one: Any, other: Any, path: str = "") -> list[str]:
    """Dotted paths at which two plain structures differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = dict.fromkeys([*one, *other])
        return [
            found for key in keys for found in differing_keys(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [
            found
            for i, pair in enumerate(zip(one, other, strict=True))
            for found in differing_keys(*pair, f"{path}[{i}]")
        ]
    return [] if one == other else [path]
