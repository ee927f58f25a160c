"""The bridge to lm-evaluation-harness, and the only file that imports it; it is installed separately.

    pip install 'lm_eval[hf]'

A stage is a plain `from_pretrained` folder: the harness loads it by itself. Here is only which tasks, and what of
the answer is kept.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifelong.errors import InputError, UnknownNameError
from lifelong.files import write_sealed
from lifelong.ledger.folder import RunFolder
from lifelong.ledger.ledger import model_of, record_hash

BATCH_SIZE = 8


def evaluate_with_harness(
    model: str,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    include: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Results of harness tasks, metric by metric; of a run they are also kept in `RUN/harness/STAGE.json`.

    Args:
        model: checkpoint folder, hub id, or run folder (its last stage).
        tasks: names as the harness knows them.
        limit: examples of each task.
        include: folder of further task files in the harness's own format.

    Raises:
        InputError: the harness is not installed, or the run has no committed stage.
        UnknownNameError: the harness does not know a task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("evaluate --harness: lm-evaluation-harness is not installed; pip install 'lm_eval[hf]'")
    source, record = model_of(model)
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include) if include is not None else None)
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise UnknownNameError("harness task", unknown[0], manager.all_tasks)
    answer = simple_evaluate(
        model="hf",
        model_args={"pretrained": source, "dtype": "float32"},
        device="cuda" if torch.cuda.is_available() else "cpu",
        tasks=list(tasks),
        limit=limit,
        batch_size=BATCH_SIZE,
        task_manager=manager,
        log_samples=False,
    )
    results = {task: _figures(values) for task, values in answer["results"].items()}
    if record is not None:
        write_sealed(
            RunFolder(model).harness(record.name),
            {"stage": record.name, "record": record_hash(record), "limit": limit, "results": results},
        )
    return results


def _figures(values: dict[str, Any]) -> dict[str, float]:
    """Metric -> value; the harness writes `acc,none` for a metric and its filter."""
    kept = {key.removesuffix(",none"): value for key, value in values.items()}
    return {key: float(value) for key, value in kept.items() if isinstance(value, int | float)}
