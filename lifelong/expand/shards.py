"""Checkpoints on disk, a parameter at a time: reading by the model's own names, and writing without holding a shard."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lifelong.errors import ExpansionError, InputError
from lifelong.expand.family import Family
from lifelong.expand.lazy import body_prefix, stored_shapes, tied_names
from lifelong.files import is_file_name, write_text

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TEXT_PART = re.compile(r"^language_model\.(?=model\.|lm_head\.)|(?<=^model\.)language_model\.")
"""What names of the text part of a multimodal checkpoint have in front or within."""
LARGEST_READ = 1 << 30
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
# left over from older versions of transformers; nothing reads them
FORGOTTEN = re.compile(
    r"(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|position_ids|token_type_ids)$"
)


@dataclass(frozen=True)
class FileEntry:
    """One tensor of a file."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class CheckpointReader:
    """The parameters of a safetensors folder by the names they have in the model; a context that closes its files.

    Raises:
        InputError: a missing or broken file, or parameters that the model needs and the folder has not.
    """

    def __init__(self, folder: Path, family: Family, model: Any) -> None:
        self.folder, self.family, self.shapes = folder, family, stored_shapes(model)
        self._open: dict[Path, BinaryIO] = {}
        try:
            self._find_parts(model)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; nothing can be read from then on."""
        for file in self._open.values():
            file.close()

    def _find_parts(self, model: Any) -> None:
        """Find every parameter of the model in the headers of the files."""
        self._prefix, self._own = body_prefix(model), str(model.base_model_prefix)
        tied = {self._standard(a): self._standard(b) for a, b in tied_names(model).items()}
        entries = {self._model_name(entry.key): entry for entry in self._entries()}
        aliases = {target: alias for alias, target in tied.items()}
        self.parts: dict[str, list[list[FileEntry]]] = {}
        used: set[str] = set()
        missing = []
        for name, shape in self.shapes.items():
            found = self._find(self._standard(name), shape, entries, aliases)
            if found is None:
                missing.append(name)
                continue
            self.parts[name] = [[entries[key] for key in row] for row in found]
            used |= {key for row in found for key in row}
        if missing:
            raise InputError(
                f"checkpoint {str(self.folder)!r} lacks {len(missing)} parameters of {self.family.name}: "
                f"{', '.join(missing[:5])}"
            )
        self.left_out = sorted(
            key for key in entries if key not in used and key not in tied and not FORGOTTEN.search(key)
        )
        self._check_shapes()

    def fetch(self, name: str) -> Tensor:
        """One parameter, in the dtype of its file."""
        rows = [
            torch.cat(row) if len(row) > 1 else row[0] for row in ([self._read(e) for e in r] for r in self.parts[name])
        ]
        return torch.stack(rows) if len(self.shapes[name]) > rows[0].dim() else rows[0]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of one parameter, in the dtype of its file; nothing else is read."""
        parts = self.parts[name]
        if len(parts) == 1 and len(parts[0]) == 1 and len(parts[0][0].shape) == len(self.shapes[name]):
            return self._read(parts[0][0], start, stop)
        if len(parts) > 1 and start < stop:
            return torch.stack([torch.cat([self._read(entry) for entry in row]) for row in parts[start:stop]])
        return self.fetch(name)[start:stop]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a parameter."""
        return self.parts[name][0][0].dtype

    def _entries(self) -> Iterable[FileEntry]:
        for path in self._files():
            try:
                with safe_open(path, framework="pt"):  # checks sizes and offsets of everything that the header names
                    pass
                self._open[path] = file = path.open("rb", buffering=0)
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path}: cannot be read as safetensors ({error})") from None
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8))
            header.pop("__metadata__", None)
            for key, entry in header.items():
                if entry["dtype"] not in DTYPES:
                    if FORGOTTEN.search(key):
                        continue
                    raise ExpansionError(
                        f"{path}: {key} is stored as {entry['dtype']}; a quantised checkpoint cannot grow, use the "
                        "full-precision one"
                    )
                yield FileEntry(
                    path, key, tuple(entry["shape"]), DTYPES[entry["dtype"]], start + entry["data_offsets"][0]
                )

    def _files(self) -> list[Path]:
        index = self.folder / INDEX
        if not index.exists():
            return [self.folder / WEIGHTS]
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{index}: no index of shards ({error})") from None
        if outside := [name for name in names if not is_file_name(name)]:
            raise InputError(f"{index}: names {outside[0]!r}, which is not a file of this checkpoint")
        absent = [name for name in names if not (self.folder / name).is_file()]
        if absent:
            raise InputError(
                f"checkpoint {str(self.folder)!r}: shard {absent[0]} is missing ({len(absent)} of {len(names)})"
            )
        return [self.folder / name for name in names]

    def _standard(self, name: str) -> str:
        """The name in the family's table of a name in the model."""
        return self.family.standard_name(name, self._prefix)

    def _model_name(self, key: str) -> str:
        """The standard name of a name in the file, as far as it can be told from the name alone."""
        key = TEXT_PART.sub("", key)
        for piece, name in self.family.renames.items():
            key = key.replace(piece, name)
        for name, piece in self.family.file_renames.items():
            key = key.replace(piece, name)
        prefix = self.family.layer_stem.split(".")[0] + "."
        inner = self.family.layer_stem.removeprefix(prefix)
        if self._own != self.family.base and key.startswith(f"{self._own}."):
            return prefix + key.removeprefix(f"{self._own}.")
        names = (*self.family.parameters, *self.family.task_heads)
        heads = {pattern.split(".")[0] for pattern in names if not pattern.startswith(prefix)}
        bare = key.split(".")[0] not in heads and not key.startswith(prefix)
        # a checkpoint of the body alone has no prefix (GPT-2 as first published)
        return prefix + key if bare and (key.startswith(inner) or "." in key) else key

    def _find(
        self, name: str, shape: tuple[int, ...], entries: Mapping[str, FileEntry], aliases: Mapping[str, str]
    ) -> list[list[str]] | None:
        for candidate in (name, aliases.get(name, name)):
            if candidate in entries:
                return [[candidate]]
        rows = expert_keys(self.family, name, shape[0])
        rows = [[self._model_name(key) for key in row] for row in rows]
        return rows if rows and all(key in entries for row in rows for key in row) else None

    def _check_shapes(self) -> None:
        for name, wanted in self.shapes.items():
            rows = self.parts[name]
            first = rows[0][0].shape
            found = (sum(e.shape[0] for e in rows[0]), *first[1:]) if first else ()
            found = (len(rows), *found) if len(wanted) > len(first) else found
            if found != wanted:
                raise InputError(
                    f"{rows[0][0].path}: {name} has shape {list(found)}, the configuration says {list(wanted)}"
                )

    def _read(self, entry: FileEntry, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows of a tensor, read and not mapped: pages of a mapped file count as memory of the process."""
        if not entry.shape:
            return self._bytes(entry, entry.offset, torch.empty(1, dtype=entry.dtype)).reshape(())
        rows = (entry.shape[0] if stop is None else stop) - start
        value = torch.empty((rows, *entry.shape[1:]), dtype=entry.dtype)
        return self._bytes(entry, entry.offset + start * entry.row_bytes, value)

    def _bytes(self, entry: FileEntry, place: int, value: Tensor) -> Tensor:
        view = value.view(torch.uint8).numpy().reshape(-1).data if value.numel() else memoryview(b"")
        done = 0
        try:
            while done < len(view):
                read = os.preadv(self._open[entry.path].fileno(), [view[done : done + LARGEST_READ]], place + done)
                if not read:
                    raise OSError("the file ends before the tensor does")
                done += read
        except OSError as error:
            raise InputError(f"{entry.path}: {entry.key} cannot be read ({error})") from None
        return value


def expert_keys(family: Family, name: str, experts: int) -> list[list[str]]:
    """The names in a file of fused experts: one row an expert; empty where the parameter is stored as it is."""
    if not family.expert_files:
        return []
    pattern, layer = family.match(name)
    for files in family.expert_files:
        if files.parameter == pattern:
            return [
                [part.replace("{layer}", str(layer)).replace("{expert}", str(e)) for part in files.parts]
                for e in range(experts)
            ]
    return []


@dataclass(frozen=True)
class Slot:
    """One tensor of a file to be written; `cut` is its place in the parameter: expert, part, number of parts."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parameter: str
    cut: tuple[int, int, int] | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def slots_of(family: Family, name: str, prefix: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[Slot]:
    """Storage slots of a parameter of a model whose body is called `prefix` (empty: bare).

    One is stored as it is, or expert by expert as transformers does.
    """
    rows = expert_keys(family, family.standard_name(name, prefix), shape[0]) if len(shape) == 3 else []
    rows = [[family.own_name(key, prefix) for key in row] for row in rows]
    if not rows:
        key = name
        for piece, stored in family.file_renames.items():
            key = key.replace(piece, stored)
        return [Slot(key, shape, dtype, name)]
    return [
        Slot(key, (shape[1] // len(row), *shape[2:]), dtype, name, (expert, part, len(row)))
        for expert, row in enumerate(rows)
        for part, key in enumerate(row)
    ]


def sharded(slots: Sequence[Slot], max_bytes: int) -> list[list[Slot]]:
    """Slots in order, cut into files of at most `max_bytes`; a parameter is never cut in two."""
    shards: list[list[Slot]] = [[]]
    groups: dict[str, list[Slot]] = {}
    for slot in slots:
        groups.setdefault(slot.parameter, []).append(slot)
    filled = 0
    for group in groups.values():
        size = sum(slot.size for slot in group)
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1] += group
        filled += size
    return shards


class ShardWriter:
    """A safetensors file whose tensors are written in any order, whole or by rows."""

    def __init__(self, path: Path, slots: Sequence[Slot]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._places, place = {}, 0
        for slot in slots:
            header[slot.key] = {
                "dtype": DTYPE_NAMES[slot.dtype],
                "shape": list(slot.shape),
                "data_offsets": [place, place + slot.size],
            }
            self._places[slot.key] = place
            place += slot.size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._file = path.open("wb", buffering=0)
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, slot: Slot, value: Tensor, first: int = 0) -> None:
        """Rows of a parameter, from row `first` on, into the slot; nothing where it has none of them."""
        if slot.cut is not None:
            expert, part, parts = slot.cut
            if not first <= expert < first + len(value):
                return
            value, first = value[expert - first].chunk(parts)[part], 0
        assert tuple(value.shape[1:]) == slot.shape[1:], f"{slot.key}: {tuple(value.shape)} is not of {slot.shape}"
        data = value.to(slot.dtype).contiguous()
        row = math.prod(slot.shape[1:]) * slot.dtype.itemsize
        view = data.reshape(-1).view(torch.uint8).numpy().data
        place = self._start + self._places[slot.key] + first * row
        while view:
            written = os.pwrite(self._file.fileno(), view, place)
            view, place = view[written:], place + written

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def write_index(folder: Path, shards: Sequence[tuple[str, Sequence[Slot]]]) -> None:
    """The index of several files, as transformers writes it."""
    weight_map = {slot.key: name for name, slots in shards for slot in slots}
    total = sum(slot.size for _, slots in shards for slot in slots)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
