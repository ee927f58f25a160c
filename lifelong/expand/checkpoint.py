"""Growing a checkpoint folder without holding a model: read, grow and write one parameter at a time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelong.errors import InputError
from lifelong.expand.apply import empty_models, grown_class, map_between
from lifelong.expand.depth import Placement
from lifelong.expand.lazy import body_prefix, checkpoint_class, empty_model, is_held, stored_shapes
from lifelong.expand.mapping import ExpansionMap
from lifelong.expand.plan import ExpansionPlan, plan_expansion
from lifelong.expand.shape import estimated_parameters
from lifelong.expand.shards import (
    WEIGHTS,
    CheckpointReader,
    FileEntry,
    ShardWriter,
    Slot,
    sharded,
    slots_of,
    write_index,
)
from lifelong.expand.source import Source, open_source, source_config, source_folder, write_companions
from lifelong.expand.verify import Level, ModelUnderTest, count_parameters
from lifelong.expand.verify import verify as compare
from lifelong.expand.width import Strategy
from lifelong.files import atomic_directory, remove_tree, write_json
from lifelong.lm.checkpoint import load_config
from lifelong.records import ExpansionReport

MAX_SHARD_BYTES = 5 * 10**9
MAKERS = 2
"""Parameters that are made and written at the same time."""
BLOCK_BYTES = 1 << 23
"""Rows that are made and written at once: as many as the cache of a processor holds beside what they come from."""
MOST_NAMED = 8
Progress = Callable[[str, float], None]
Finish = Callable[[Path, list[FileEntry]], Mapping[str, Any]]
"""What else is done to a folder that is verified and not there yet, given its parameters with a row for each token.
What it returns is kept in `expansion.json`, `notes` among the notes of the report."""


class _NotExactError(Exception):
    """Ends the writing of a folder whose model does not keep the function."""


def explain_expansion(
    source: str | Path,
    targets: Mapping[str, int],
    *,
    mode: str = "exact",
    approximate: bool = False,
    strategy: Strategy = "pad",
    placement: Placement = "interleaved",
) -> str:
    """Describe what growing a checkpoint would do, from its configuration alone.

    Raises:
        ExpansionError: the target cannot be reached.
        UnknownNameError: no family covers the architecture.
    """
    (config, notes), sizes = source_config(str(source)), dict[str, Any](targets)
    plan = plan_expansion(config, mode=mode, approximate=approximate, strategy=strategy, placement=placement, **sizes)
    model_class = checkpoint_class(config, plan.family.objective)
    models = empty_models(plan, model_class)
    mapping = map_between(plan, *models)
    counts = [count_parameters(model) for model in models]
    return (
        "".join(f"{note}\n" for note in notes)
        + f"{plan.explain()}\nparameters: {counts[0]:,} -> {counts[1]:,} ({counts[1] / counts[0]:.2f}x, "
        f"{len(mapping.tensors)} tensors; float32 {_gigabytes(4 * counts[1])}, bfloat16 {_gigabytes(2 * counts[1])})"
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def expand_checkpoint(  # noqa: PLR0913  # as the command line has them
    source: str | Path,
    out: str | Path,
    *,
    targets: Mapping[str, int],
    mode: str = "exact",
    approximate: bool = False,
    strategy: Strategy = "pad",
    placement: Placement = "interleaved",
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    verify: Level | None = None,
    progress: Progress | None = None,
    finish: Finish | None = None,
) -> ExpansionReport:
    """Grow the checkpoint `source` into the new folder `out`, which appears complete and verified or not at all.

    Safetensors checkpoints are grown a parameter at a time; others are loaded first.

    Args:
        source: folder or hub id.
        out: new folder.
        targets: larger sizes by axis name.
        mode: `exact` or `elle`.
        approximate: continue where exactness is impossible.
        strategy: how new units begin.
        placement: of new layers: `interleaved`, `last`, or for every one the layer it follows.
        seed: of new entries.
        max_shard_bytes: size of a file of the result.
        verify: `full`; `quick`, a few tokens in float64; `none`, no logits. By default `full` for models that can be
            held in float64 and `quick` for larger ones: it takes no longer than the growth.
        progress: told what is being done, and the fraction done.
        finish: see `Finish`.

    Returns:
        What was measured. Where `passed` is false nothing was written.

    Raises:
        InputError: `out` exists or has no room, or `source` cannot be read.
        ExpansionError: the target cannot be reached, or a parameter holds values that are not finite.
    """
    started = time.monotonic()
    source, out = str(source), Path(out)
    _check_out(out)
    if verify not in (None, "full", "quick", "none"):
        raise InputError(f"verify: 'full', 'quick' or 'none', not {verify!r}")
    (config, parts), sizes = source_config(source), dict[str, Any](targets)
    plan = plan_expansion(
        config, mode=mode, approximate=approximate, strategy=strategy, placement=placement, seed=seed, **sizes
    )
    _check_room(plan, out)
    folder = source_folder(source)
    notes = (*parts, *_vocabulary_notes(folder, plan))
    if source != str(folder) and Path(source).is_dir():
        notes = (f"{source} is a run: the model of its newest stage, {folder.parent.name}, was grown", *notes)
    tell = progress or (lambda _text, _fraction: None)
    report = None
    partial = out.with_name(f".{out.name}.partial")
    with open_source(folder, plan.family, config) as old:
        large = empty_model(grown_class(plan, type(old.empty)), plan.target_config)
        mapping = map_between(plan, old.empty, large)
        try:
            with atomic_directory(out) as partial:
                _write_model(plan, mapping, old, large, partial, max_shard_bytes, tell)
                write_companions(folder, partial, text_only=bool(parts))
                report = _verify_written(plan, mapping, old, type(large), partial, verify, tell)
                if old.left_out:
                    notes = (*notes, _listed(old.left_out))
                report = replace(report, notes=(*report.notes, *notes))
                report = replace(report, seconds=time.monotonic() - started)
                if not report.passed:
                    raise _NotExactError
                kept = dict(finish(partial, _token_rows(plan, mapping, large, partial))) if finish is not None else {}
                report = replace(report, notes=(*report.notes, *kept.pop("notes", ())))
                write_json(partial / "expansion.json", {**report.to_json(), **kept, "map": mapping.to_json()})
        except _NotExactError:
            pass
        except OSError as error:
            raise InputError(f"{str(out)!r} cannot be written: {error}") from None
        finally:
            remove_tree(partial)
    assert report is not None, "a folder is verified before it is finished"
    return report


def _check_out(out: Path) -> None:
    """Refuse what cannot become a new folder, before any work."""
    if out.exists() or out.is_symlink():
        raise InputError(f"{str(out)!r} already exists; choose a new folder")
    above = _existing_parent(out)
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"{str(out)!r} cannot be written: {str(above)!r} is no folder that you may write to")


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())


def _check_room(plan: ExpansionPlan, out: Path) -> None:
    """Refuse a growth that the disk cannot hold."""
    size = estimated_parameters(plan.target_family, plan.target, tied=plan.tied) * _bytes_of(plan.source_config)
    free = shutil.disk_usage(_existing_parent(out)).free
    if size > free:
        raise InputError(
            f"{str(out)!r}: the grown model takes about {_gigabytes(size)}, and {_gigabytes(free)} are free there"
        )


def _bytes_of(config: Any) -> int:
    dtype = getattr(config, "dtype", None) or torch.float32
    found: int = (getattr(torch, dtype, torch.float32) if isinstance(dtype, str) else dtype).itemsize
    return found


def _vocabulary_notes(folder: Path, plan: ExpansionPlan) -> tuple[str, ...]:
    """A word on a tokenizer that has more tokens than the model."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return ()
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        ids = [token["id"] for token in found.get("added_tokens", [])]
        vocabulary = found["model"]["vocab"]
        ids += vocabulary.values() if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    except (ValueError, KeyError, TypeError, AttributeError):
        return (f"{file.name} could not be read; it was copied as it is",)
    most, size = max(ids, default=-1) + 1, plan.target["vocab_size"]
    return (f"the tokenizer has {most} tokens, the model {size}: grow vocab_size to {most}",) if most > size else ()


def _listed(left_out: tuple[str, ...]) -> str:
    if len(left_out) <= MOST_NAMED:
        return f"left out: {', '.join(left_out)}"
    parts = sorted({".".join(name.split(".")[:2]) for name in left_out})
    return f"left out: {len(left_out)} tensors of {', '.join(parts)}"


def _write_model(
    plan: ExpansionPlan,
    mapping: ExpansionMap,
    old: Source,
    large: Any,
    folder: Path,
    max_shard_bytes: int,
    tell: Progress,
) -> None:
    """Configuration and weights; the next parameters are made while one is written."""
    shapes, prefix = stored_shapes(large), body_prefix(large)
    first = next(iter(t.sources[0] for t in mapping.tensors.values() if t.sources))
    slots = []
    for name, shape in shapes.items():
        sources = mapping.tensors[name].sources
        slots += slots_of(plan.target_family, name, prefix, shape, old.dtype(sources[0] if sources else first))
    shards = sharded(slots, max_shard_bytes)
    names = [WEIGHTS] if len(shards) == 1 else [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]  # fmt: skip
    _write_shards(mapping, old, [(folder / n, s) for n, s in zip(names, shards, strict=True)], tell)
    if len(shards) > 1:
        write_index(folder, list(zip(names, shards, strict=True)))
    plan.target_config.architectures = [type(large).__name__]
    plan.target_config.save_pretrained(folder)


def _write_shards(mapping: ExpansionMap, old: Source, shards: list[tuple[Path, list[Slot]]], tell: Progress) -> None:
    """Parameters are made and written by blocks of rows, several at the same time, each at its place in its file."""
    total = sum(slot.size for _, slots in shards for slot in slots)
    done, lock = 0, threading.Lock()

    def make(writer: ShardWriter, name: str, slots: list[Slot]) -> None:
        nonlocal done
        row = 0
        for block in _blocks(mapping, old, name):
            for slot in slots:
                writer.write(slot, block, row)
            row += block.shape[0] if block.dim() else 1
        with lock:
            done += sum(slot.size for slot in slots)
            tell(f"grow {name}", done / total)

    with ThreadPoolExecutor(MAKERS) as pool, contextlib.ExitStack() as files:
        made = []
        for path, slots in shards:
            writer = files.enter_context(contextlib.closing(ShardWriter(path, slots)))
            groups: dict[str, list[Slot]] = {}
            for slot in slots:
                groups.setdefault(slot.parameter, []).append(slot)
            made += [pool.submit(make, writer, name, group) for name, group in groups.items()]
        try:
            for each in made:
                each.result()
        finally:
            for each in made:
                each.cancel()
            pool.shutdown()


def _blocks(mapping: ExpansionMap, old: Source, name: str) -> Iterator[Tensor]:
    """A grown parameter by rows; as a whole where its rows depend on each other."""
    sources = mapping.tensors[name].sources
    if sources and (blocks := mapping.weight_rows(name, old.rows, old.dtype(sources[0]), most_bytes=BLOCK_BYTES)):
        return blocks
    return iter([mapping.weight(name, {source: old.fetch(source) for source in sources})])


def _token_rows(plan: ExpansionPlan, mapping: ExpansionMap, large: Any, folder: Path) -> list[FileEntry]:
    """Written parameters with a row for each token."""
    if plan.target_family.converted_files:
        raise InputError(
            f"--add-tokens-from: files of {plan.target_family.name} store other tensors than the model has"
        )
    with CheckpointReader(folder, plan.target_family, large) as reader:
        parts = reader.parts
    return [parts[name][0][0] for name, tensor in mapping.tensors.items() if tensor.axes[0] == "vocab"]


def _verify_written(
    plan: ExpansionPlan,
    mapping: ExpansionMap,
    old: Source,
    model_class: Any,
    folder: Path,
    level: Level | None,
    tell: Progress,
) -> ExpansionReport:
    """Compare the old model with what was written, read back as anyone would."""
    model = empty_model(model_class, load_config(folder))
    with CheckpointReader(folder, plan.target_family, model) as reader:
        return compare(
            plan,
            mapping,
            ModelUnderTest(old.empty, old.fetch, old.rows),
            ModelUnderTest(model, reader.fetch, reader.rows),
            level=level or ("full" if is_held(model, torch.float64) else "quick"),
            progress=lambda text: tell(text, 1.0),
        )
