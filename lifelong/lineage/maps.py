"""The lineage of a model: any earlier stage brought to the newest size, by the maps that grew it.

Every growth left its map in the stage that it belongs to. Applied one after the other, these maps take the weights of
an earlier stage, or whatever is attached to them, to the newest size: as a teacher, as an anchor, or to be interpolated
with the newest model. No training state and no corpus is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.errors import CorruptionError, UnknownNameError
from lifelong.expand import ExpansionMap
from lifelong.files import read_json
from lifelong.ledger.folder import INITIAL, RunFolder
from lifelong.ledger.integrity import damaged_files
from lifelong.ledger.ledger import committed_stages
from lifelong.lm.checkpoint import SAFE, load_config
from lifelong.lm.foreign import loading
from lifelong.records import StageRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


def maps_since(out: str | Path, stage: int | str) -> list[ExpansionMap]:
    """The maps of all growths after a stage, oldest first; none where the model kept its size.

    Args:
        out: the run folder.
        stage: index or name of a committed stage, or `initial`.

    Raises:
        InputError: not a run folder, or no such stage.
        CorruptionError: a map is damaged.
    """
    run = RunFolder(out)
    stages = committed_stages(run.path)
    first = 0 if stage == INITIAL else _find(stages, stage) + 1
    grown = [record for record in stages[first:] if record.expansion is not None]
    paths = [run.stage(record.name).expansion for record in grown]
    names = set(map(run.name_of, paths))
    _require(run, {name: digest for record in grown for name, digest in record.files.items() if name in names})
    return [ExpansionMap.from_json(read_json(path)["map"]) for path in paths]


def carry_weights(maps: Sequence[ExpansionMap], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights, averages of weights or anchors by parameter name, at the size after the last map."""
    carried = dict(weights)
    for mapping in maps:
        carried = mapping.apply_weights(carried)
    return carried


def carry_importances(
    maps: Sequence[ExpansionMap], values: Mapping[str, Tensor], *, power: int = 2
) -> dict[str, Tensor]:
    """Grow quantities like gradients (`power` 1) or their squares (2: Fisher information); 0 where entries are new."""
    carried = dict(values)
    for mapping in maps:
        carried = mapping.apply_gradients(carried, power=power)
    return carried


def stage_at_newest_size(out: str | Path, stage: int | str, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of an earlier stage with the shape of the newest one, computing what it computed.

    Args:
        out: the run folder.
        stage: index or name of a committed stage; the newest itself is returned as it is.
        dtype: of the weights; float32 where not given. In float64 the function is kept to 1e-10.

    Returns:
        A stock transformers model in evaluation mode.

    Raises:
        InputError: not a run folder, or no such stage.
        CorruptionError: a file that is needed is damaged.
    """
    import torch

    from lifelong.expand.lazy import filled_model, stored_tensors

    run, dtype = RunFolder(out), dtype or torch.float32
    stages = committed_stages(run.path)
    record = stages[_find(stages, stage)]
    model = run.model(record.name)
    listed = f"{run.name_of(model)}/"
    _require(run, {name: digest for name, digest in record.files.items() if name.startswith(listed)})
    maps = maps_since(out, stage)
    old_class = _class_of(load_config(model))
    with loading("checkpoint", model):
        old = old_class.from_pretrained(model, dtype=dtype, **SAFE)
    weights = carry_weights(maps, stored_tensors(old))
    newest = load_config(run.model(stages[-1].name))
    return filled_model(_class_of(newest), newest, weights.__getitem__, dtype)


def _find(stages: Sequence[StageRecord], stage: int | str) -> int:
    names = [record.name for record in stages]
    if isinstance(stage, int) and 0 <= stage < len(stages):
        return stage
    if stage in names:
        return names.index(str(stage))
    raise UnknownNameError("committed stage", stage, [*names, *map(str, range(len(names)))])


def _require(run: RunFolder, files: Mapping[str, str]) -> None:
    if findings := list(damaged_files(run.path, files)):
        raise CorruptionError(f"run folder {str(run.path)!r}: " + "; ".join(findings) + "; restore from a backup")


def _class_of(config: Any) -> Any:
    import transformers

    return getattr(transformers, config.architectures[0])
