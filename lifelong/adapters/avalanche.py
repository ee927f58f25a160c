"""The bridge to Avalanche, and the only file that imports it.

A stream becomes an Avalanche benchmark whose experiences are the stages, so that third-party strategies and
metrics can be tried on the very same packed blocks; and its plugins are driven from our training. Importing Avalanche
takes some ten seconds: import this module inside a function.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import DataAttribute
from avalanche.training.utils import ParamData

from lifelong.errors import InputError
from lifelong.stream.blocks import Blocks
from lifelong.stream.collator import Collator, PackedRow
from lifelong.stream.ordering import key_of

if TYPE_CHECKING:
    from avalanche.benchmarks.scenarios import CLScenario


class _Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Blocks of one domain as dicts of tensors [T], masked by their row where the objective asks for it."""

    def __init__(self, blocks: Blocks, column: int, collator: Collator) -> None:
        self._blocks, self._column, self._collator = blocks, column, collator

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = PackedRow(
            block=self._blocks[int(index)],
            domain_id=self._column,
            is_replay=False,
            mask_key=key_of("avalanche", self._column, int(index)),
        )
        return {name: tensor[0] for name, tensor in self._collator([row]).items()}


def stack_rows(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of tensors [T] to one batch [B, T]."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def as_benchmark(
    train: Sequence[tuple[str, Blocks]], collator: Collator, *, valid: Sequence[tuple[str, Blocks]] = ()
) -> CLScenario:
    """The stages as experiences of an Avalanche benchmark.

    Items are the dicts of tensors that training sees (`input_ids`, `labels`, `position_ids`, ...); `targets` and
    `targets_task_labels` hold the column of the domain.

    Args:
        train: domain name and blocks of each stage, in order; a name may come back.
        collator: makes tensors of rows.
        valid: the same for a `test` stream, if given.
    """
    columns = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in [*train, *valid]))}
    streams = {"train": train, **({"test": valid} if valid else {})}
    return benchmark_from_datasets(
        **{
            stream: [_dataset(_Rows(blocks, columns[name], collator), columns[name]) for name, blocks in stages]
            for stream, stages in streams.items()
        }
    )


def _dataset(rows: _Rows, column: int) -> AvalancheDataset[Any]:
    labels = [column] * len(rows)
    attributes = [DataAttribute(labels, name) for name in ("targets", "targets_task_labels")]
    return AvalancheDataset([rows], data_attributes=attributes, collate_fn=stack_rows)


# --- plugins: see methods/_avalanche.py -----------------------------------------------------------------------

SKELETON = "skeleton"
_REBUILT = ("buffer_dataloader", "buffer_dliter")


def plugin_classes() -> dict[str, type]:
    """Avalanche's plugins by name."""
    from avalanche.training import plugins

    found = {name: value for name, value in vars(plugins).items() if inspect.isclass(value)}
    return {
        name: value for name, value in sorted(found.items()) if name.endswith("Plugin") and name != "SupervisedPlugin"
    }


class _Examples(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Rows x `[n, C, T]`, labels y `[n, T]`, and a task label that is always 0."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        return self.x[int(index)], self.y[int(index)], 0


def example_dataset(examples: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> AvalancheDataset[Any]:
    """The experience that a plugin sees: x `[C, T]` and y `[T]` of every row."""
    x, y = (torch.stack(parts) for parts in zip(*examples, strict=True))
    return _experience(x, y)


def _experience(x: torch.Tensor, y: torch.Tensor) -> AvalancheDataset[Any]:
    labels = [DataAttribute([0] * len(x), name) for name in ("targets", "targets_task_labels")]
    return AvalancheDataset([_Examples(x, y)], data_attributes=labels)


def restart_memory(plugin: Any) -> None:
    """Let A-GEM's walk through its memory begin anew, so that what it draws depends on nothing but the seed."""
    buffers = getattr(plugin, "buffers", None)
    if not buffers or not hasattr(plugin, "buffer_dliter"):
        return
    from avalanche.benchmarks.utils.data_loader import GroupBalancedInfiniteDataLoader

    plugin.buffer_dataloader = GroupBalancedInfiniteDataLoader(
        buffers, batch_size=max(1, plugin.sample_size // len(buffers)), num_workers=0, pin_memory=False
    )
    plugin.buffer_dliter = iter(plugin.buffer_dataloader)


def plugin_state(plugin: Any) -> dict[str, torch.Tensor]:
    """All attributes of a plugin as tensors and one JSON text; nothing is pickled.

    Raises:
        InputError: it keeps something else.
    """
    tensors: dict[str, torch.Tensor] = {}

    def plain(value: Any, path: str) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, torch.Tensor):
            tensors[path] = value.detach().clone()
            return {"tensor": path}
        if isinstance(value, ParamData):
            tensors[path] = value.data.detach().clone()
            return {"parameter": path, "name": value.name}
        if isinstance(value, AvalancheDataset):
            rows = [value[i] for i in range(len(value))]
            tensors[f"{path}.x"], tensors[f"{path}.y"] = (torch.stack([row[i] for row in rows]) for i in (0, 1))
            return {"dataset": path}
        if isinstance(value, Mapping):
            return {"items": [[key, plain(item, f"{path}.{key}")] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [plain(item, f"{path}.{i}") for i, item in enumerate(value)]}
        raise InputError(
            f"methods.avalanche:{type(plugin).__name__}: keeps {path} as a {type(value).__name__}, which can only be "
            "pickled; nothing is pickled here"
        )

    kept = {name: value for name, value in vars(plugin).items() if name not in _REBUILT}
    skeleton = json.dumps({name: plain(value, name) for name, value in kept.items()})
    return {**tensors, SKELETON: torch.tensor(list(skeleton.encode()), dtype=torch.uint8)}


def load_plugin_state(plugin: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Inverse of `plugin_state`."""

    def rebuilt(value: Any, before: Any = None) -> Any:
        if not isinstance(value, dict):
            return value
        made: Any
        if "tensor" in value:
            made = state[value["tensor"]].clone()
        elif "parameter" in value:
            made = ParamData(value["name"], init_tensor=state[value["parameter"]].clone())
        elif "dataset" in value:
            made = _experience(state[f"{value['dataset']}.x"], state[f"{value['dataset']}.y"])
        elif "list" in value:
            made = [rebuilt(item) for item in value["list"]]
        else:
            made = before if isinstance(before, dict) else {}  # a defaultdict stays one
            made.clear()
            made.update((key, rebuilt(item)) for key, item in value["items"])
        return made

    for name, value in json.loads(bytes(state[SKELETON].tolist())).items():
        setattr(plugin, name, rebuilt(value, getattr(plugin, name, None)))
