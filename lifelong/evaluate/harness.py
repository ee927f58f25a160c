"""The bridge to lm-evaluation-harness, and the only file that imports it; it is installed separately.

    pip install 'lm_eval[hf]'

A stage is a plain `from_pretrained` folder: the harness loads it by itself. Here is only which tasks, and what of
the answer is kept.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong.errors import CorruptionError, InputError, UnknownNameError
from lifelong.evaluate.source import ModelSource, find_source
from lifelong.files import read_sealed, write_sealed
from lifelong.ledger.ledger import record_hash
from lifelong.records import HarnessScores

BATCH_SIZE = 8


def evaluate_with_harness(
    model: str,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    include: Path | None = None,
    stage: str | int | None = None,
) -> dict[str, dict[str, float]]:
    """Results of harness tasks, metric by metric; of a run they are also kept in `RUN/harness/STAGE.json`.

    Args:
        model: checkpoint folder, hub id, or run folder.
        tasks: names as the harness knows them.
        limit: examples of each task.
        include: folder of further task files in the harness's own format.
        stage: of a run: name or number of a stage, or `initial`; the last where absent.

    Raises:
        InputError: the harness is not installed, or the run has no committed stage.
        UnknownNameError: the harness does not know a task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("evaluate --harness: lm-evaluation-harness is not installed; pip install 'lm_eval[hf]'")
    source = find_source(model, stage)
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include) if include is not None else None)
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise UnknownNameError("harness task", unknown[0], manager.all_tasks)
    answer = simple_evaluate(
        model="hf",
        model_args={"pretrained": source.weights, "tokenizer": source.tokenizer, "dtype": source.dtype},
        device="cuda" if torch.cuda.is_available() else "cpu",
        tasks=list(tasks),
        limit=limit,
        batch_size=BATCH_SIZE,
        task_manager=manager,
        log_samples=False,
    )
    results = {task: _figures(values) for task, values in answer["results"].items()}
    _keep(source, results, limit)
    return results


def _keep(source: ModelSource, results: Mapping[str, Mapping[str, float]], limit: int | None) -> None:
    """Add results to those of the stage; earlier ones of other weights are dropped."""
    if source.run is None or source.record is None:
        return
    path, record = source.run.harness(source.record.name), record_hash(source.record)
    known = HarnessScores(source.record.name, record, {}, {})
    with contextlib.suppress(CorruptionError, KeyError, TypeError):  # of an older version, or damaged: measured again
        if path.is_file() and (earlier := HarnessScores.from_json(read_sealed(path))).record == record:
            known = earlier
    limits = {**known.limits, **dict.fromkeys(results, limit)}
    write_sealed(path, HarnessScores(known.stage, record, {**known.results, **results}, limits).to_json())


def _figures(values: dict[str, Any]) -> dict[str, float]:
    """Metric -> value; the harness writes `acc,none` for a metric and its filter."""
    kept = {key.removesuffix(",none"): value for key, value in values.items()}
    return {key: float(value) for key, value in kept.items() if isinstance(value, int | float)}
