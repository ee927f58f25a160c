"""Interpolation between the old model at the new size and the trained one.

A growth is a linear map of the weights. Applied once more to the previous stage's model it gives that model at the
size after it, with the same function; between the two is a family of models that trade what was learned for
what was kept. Weight 0 is the old model, weight 1 the trained one.

Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models (arXiv 2109.01903), for models of one size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.errors import CorruptionError, InputError, UnknownNameError
from lifelong.expand.lazy import tied_names
from lifelong.expand.mapping import ExpansionMap
from lifelong.files import atomic_directory, read_json, write_json
from lifelong.ledger.folder import RunFolder
from lifelong.ledger.integrity import damaged_files
from lifelong.ledger.ledger import committed_stages, record_hash
from lifelong.lm.checkpoint import as_stored, load_model, save_model
from lifelong.records import StageRecord
from lifelong.stream.tokenizers.load import copy_domain_tokenizers, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class StageEnds:
    """Weights before and after a stage, by parameter name at the new size, and the trained model to put them in.

    `model` holds whatever weights were put in last.
    """

    record: StageRecord
    model: PreTrainedModel
    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]

    def at(self, weight: float) -> PreTrainedModel:
        """The model at `weight` of the way, in place.

        Raises:
            InputError: the weight is not between 0 and 1.
        """
        check_weight(weight)
        import torch

        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, new in self.new.items():
                # both ends exactly: a + (b - a) is not always b in floating point
                value = (
                    self.old[name] if weight == 0 else new if weight == 1 else torch.lerp(self.old[name], new, weight)
                )
                parameters[name].copy_(value)
        self.model.tie_weights()
        return self.model


def check_weight(weight: float) -> float:
    """The weight itself.

    Raises:
        InputError: it is not a number from 0 to 1.
    """
    if not 0 <= weight <= 1:
        raise InputError(
            f"merge: a weight is between 0 (the previous stage's model) and 1 (the trained one), not {weight}"
        )
    return weight


def check_new(out: Path) -> None:
    """Refuse to write into what is there.

    Raises:
        InputError: `out` exists.
    """
    if out.exists():
        raise InputError(f"{str(out)!r} already exists; choose a new folder")


def stage_ends(run: Path, recipe: Mapping[str, Any], stage: str | None = None) -> StageEnds:
    """Both ends of a stage of a run, read from its folder; the last stage where none is named.

    Args:
        run: the run folder.
        recipe: its recipe in plain values.
        stage: name of a stage (`01-news`) or its number.

    Raises:
        InputError: no run, nothing committed, or a first stage that started from a randomly initialised model.
        UnknownNameError: no such stage.
        CorruptionError: a file is not what was committed.
    """
    records = committed_stages(run)
    record = _named(records, stage)
    objective = str(recipe.get("objective", "clm"))
    folder = RunFolder(run).stage(record.name)
    _check_files(run, record, (folder.model / "model.safetensors", folder.expansion))
    new = load_model(folder.model, objective)
    source = _source_before(run, records, record, recipe)
    old_model = load_model(source, objective, recipe["model"].get("revision") if record.index == 0 else None)
    old = weights_of(old_model)
    if record.expansion is not None:
        old = ExpansionMap.from_json(read_json(folder.expansion)["map"]).apply_weights(old)
    return StageEnds(record, new, old, {name: value.clone() for name, value in weights_of(new).items()})


def merge_stage(
    run: Path, recipe: Mapping[str, Any], weight: float, out: Path, stage: str | None = None
) -> StageRecord:
    """Write the model at `weight` between the previous stage's model and the trained one as a plain checkpoint.

    `merge.json` beside the weights says where they come from.

    Raises:
        InputError: the weight, the run or the stage is wrong, or `out` exists.
    """
    check_weight(weight)
    check_new(out)
    ends = stage_ends(run, recipe, stage)
    source = RunFolder(run).model(ends.record.name)
    tokenizer = load_tokenizer(source)
    model = ends.at(weight)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(out) as partial:
            save_model(as_stored(model, source), tokenizer, partial)
            copy_domain_tokenizers(source, partial)
            origin = {"run": recipe["name"], "stage": ends.record.name, "record": record_hash(ends.record)}
            write_json(partial / "merge.json", {**origin, "weight": weight})
    except OSError as error:
        raise InputError(f"{str(out)!r} cannot be written: {error.strerror}") from None
    return ends.record


def weights_of(model: Any) -> dict[str, Tensor]:
    """Parameters by name without those that share another's values."""
    tied = tied_names(model)
    return {name: value.detach() for name, value in model.named_parameters(remove_duplicate=False) if name not in tied}


def _named(records: list[StageRecord], stage: str | None) -> StageRecord:
    if stage is None:
        return records[-1]
    for record in records:
        if stage in (record.name, str(record.index)):
            return record
    raise UnknownNameError("stage", stage, [record.name for record in records])


def _source_before(run: Path, records: list[StageRecord], record: StageRecord, recipe: Mapping[str, Any]) -> str | Path:
    """Folder of the previous stage's model."""
    if record.index > 0:
        before = records[record.index - 1]
        model = RunFolder(run).model(before.name)
        _check_files(run, before, (model / "model.safetensors",))
        return model
    checkpoint = recipe["model"].get("checkpoint")
    if checkpoint is None:
        raise InputError(
            f"merge: stage {record.name} is the first and started from a randomly initialised model: "
            "there is no older model to go back to; name a later stage"
        )
    return str(checkpoint)


def _check_files(run: Path, record: StageRecord, paths: tuple[Path, ...]) -> None:
    names = [name for name in map(RunFolder(run).name_of, paths) if name in record.files]
    for finding in damaged_files(run, {name: record.files[name] for name in names}):
        raise CorruptionError(f"{run}/{finding}; restore it from a backup")
