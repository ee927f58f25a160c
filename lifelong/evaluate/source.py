"""The model that is to be measured: a checkpoint, or a stage of a run with the run's own settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lifelong.errors import InputError, UnknownNameError
from lifelong.ledger.folder import INITIAL, RunFolder
from lifelong.ledger.ledger import committed_stages, read_records
from lifelong.records import StageRecord

NEEDED_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class ModelSource:
    """Where weights and tokenizer are, and of a run the folder, its recipe in plain values and the stage's record."""

    weights: str
    tokenizer: str
    run: RunFolder | None = None
    record: StageRecord | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name for tables."""
        return Path(self.weights).name if self.record is None else self.record.name

    @property
    def dtype(self) -> str:
        """Precision in which the run measured itself; float32 for a checkpoint."""
        return str(self.recipe.get("model", {}).get("dtype", "float32"))

    @property
    def use_cpu(self) -> bool:
        """Whether the run was kept off the accelerator."""
        return bool(self.recipe.get("train", {}).get("use_cpu"))


def find_source(model: str | Path, stage: str | int | None = None) -> ModelSource:
    """The model that a name means.

    Args:
        model: checkpoint folder, hub id or run folder.
        stage: of a run: name or number of a stage, or `initial`, the model before the first; the last where absent.

    Raises:
        InputError: a stage of something that is not a run, a run without a committed stage, or an initial model with
            random weights.
        UnknownNameError: no such stage.
    """
    if (run := RunFolder.locate(model)) is None:
        if stage is not None:
            raise InputError(f"evaluate --stage {stage}: {str(model)!r} is not a run folder; only a run has stages")
        return ModelSource(str(model), str(model))
    run.require()
    record = committed_stages(run.path)[-1] if stage is None else _named(read_records(run.path), str(stage))
    recipe = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    if record.index >= 0:
        folder = str(run.model(record.name))
        return ModelSource(folder, folder, run, record, recipe)
    return ModelSource(_initial_weights(run, recipe), str(run.initial.tokenizer), run, record, recipe)


def _named(records: Sequence[StageRecord], stage: str) -> StageRecord:
    for record in records:
        if stage in (record.name, str(record.index)):
            return record
    raise UnknownNameError("stage", stage, [record.name for record in records])


def _initial_weights(run: RunFolder, recipe: Mapping[str, Any]) -> str:
    """Folder or hub id of the checkpoint that a run started from, at its revision."""
    checkpoint, revision = recipe["model"].get("checkpoint"), recipe["model"].get("revision")
    if checkpoint is None:
        raise InputError(
            f"evaluate --stage {INITIAL}: {str(run.path)!r} started from random weights, which are not kept; its "
            "losses are the first row of the run's matrix"
        )
    if revision is None or Path(checkpoint).exists():
        return str(checkpoint)
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(checkpoint, revision=revision, allow_patterns=list(NEEDED_FILES)))
    except (OSError, ValueError) as error:
        raise InputError(f"checkpoint {checkpoint!r} at {revision!r}: {' '.join(str(error).split())[:200]}") from None
