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
from lifelong.ledger.integrity import damaged_files, record_folder
from lifelong.ledger.ledger import committed_stages
from lifelong.lm.checkpoint import load_config
from lifelong.records import StageRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

MAP_FILE = "expansion.json"


def maps_since(out: str | Path, stage: int | str) -> list[ExpansionMap]:
    """The maps of all growths after a stage, oldest first; none where the model kept its size.

    Args:
        out: the run folder.
        stage: index or name of a committed stage.

    Raises:
        InputError: no run folder, or no such stage.
        CorruptionError: a map is damaged.
    """
    out = Path(out)
    stages = committed_stages(out)
    first = _find(stages, stage) + 1
    grown = [record for record in stages[first:] if record.expansion is not None]
    _require(out, {name: digest for record in grown for name, digest in record.files.items() if MAP_FILE in name})
    return [ExpansionMap.from_json(read_json(out / record_folder(record) / MAP_FILE)["map"]) for record in grown]


def carry_weights(maps: Sequence[ExpansionMap], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights, averages of weights or anchors by parameter name, at the size after the last map."""
    carried = dict(weights)
    for mapping in maps:
        carried = mapping.apply_weights(carried)
    return carried


def carry_importances(
    maps: Sequence[ExpansionMap], values: Mapping[str, Tensor], *, power: int = 2
) -> dict[str, Tensor]:
    """What is attached to gradients (`power` 1) or their squares (2: Fisher information); 0 where entries are new."""
    carried = dict(values)
    for mapping in maps:
        carried = mapping.apply_gradients(carried, power=power)
    return carried


def stage_at_newest_size(out: str | Path, stage: int | str, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model of an earlier stage with the shape of the newest one, computing what it computed.

    Args:
        out: the run folder.
        stage: index or name of a committed stage; the newest itself is handed back as it is.
        dtype: of the weights; float32 where not given. In float64 the function is kept to 1e-10.

    Returns:
        A stock transformers model in evaluation mode.

    Raises:
        InputError: no run folder, or no such stage.
        CorruptionError: a file that is needed is damaged.
    """
    import torch

    from lifelong.expand.lazy import filled_model, tied_names

    out, dtype = Path(out), dtype or torch.float32
    stages = committed_stages(out)
    record = stages[_find(stages, stage)]
    folder = f"{record_folder(record)}/model/"
    _require(out, {name: digest for name, digest in record.files.items() if name.startswith(folder)})
    maps = maps_since(out, stage)
    old_class = _class_of(load_config(out / folder))
    old = old_class.from_pretrained(out / folder, dtype=dtype, trust_remote_code=False)
    tied = tied_names(old)
    weights = {name: p.detach() for name, p in old.named_parameters(remove_duplicate=False) if name not in tied}
    weights = carry_weights(maps, weights)
    newest = load_config(out / record_folder(stages[-1]) / "model")
    return filled_model(_class_of(newest), newest, weights.__getitem__, dtype)


def _find(stages: Sequence[StageRecord], stage: int | str) -> int:
    names = [record.name for record in stages]
    if isinstance(stage, int) and 0 <= stage < len(stages):
        return stage
    if stage in names:
        return names.index(str(stage))
    raise UnknownNameError("committed stage", stage, [*names, *map(str, range(len(names)))])


def _require(out: Path, files: Mapping[str, str]) -> None:
    if findings := list(damaged_files(out, files)):
        raise CorruptionError(f"run folder {str(out)!r}: " + "; ".join(findings) + "; restore from a backup")


def _class_of(config: Any) -> Any:
    import transformers

    return getattr(transformers, config.architectures[0])
