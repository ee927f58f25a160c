"""The bridge to lm-evaluation-harness, and the only file that imports it; it is installed separately.

    pip install 'lm_eval[hf]'

A stage is a plain `from_pretrained` folder: the harness loads it by itself. Here is only which stage, and what of
the answer is kept.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifelong.errors import InputError, UnknownNameError
from lifelong.files import write_json
from lifelong.ledger.ledger import committed_stages, record_hash

FOLDER = "harness"


def evaluate_with_harness(
    model: str,
    tasks: Sequence[str],
    *,
    stage: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    include: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Results of harness tasks, metric by metric; of a run they are also kept in `RUN/harness/STAGE.json`.

    Args:
        model: checkpoint folder, hub id, or run folder.
        tasks: names as the harness knows them.
        stage: name or number of a stage of the run; the last one where not given.
        limit: examples of each task.
        batch_size: of the harness.
        include: folder of further task files in the harness's own format.

    Raises:
        InputError: the harness is not installed, or does not know a task.
        UnknownNameError: no such stage.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("evaluate --harness: lm-evaluation-harness is not installed; pip install 'lm_eval[hf]'")
    source, record = _source(model, stage)
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
        batch_size=batch_size,
        task_manager=manager,
        log_samples=False,
    )
    results = {task: _figures(values) for task, values in answer["results"].items()}
    if record is not None:
        write_json(
            Path(model) / FOLDER / f"{record.name}.json",
            {"stage": record.name, "record": record_hash(record), "limit": limit, "results": results},
        )
    return results


def _source(model: str, stage: str | None) -> tuple[str, Any]:
    """Where the weights are, and the stage's line in the ledger where it is a run."""
    run = Path(model)
    if not (run / "ledger.jsonl").is_file():
        if stage is not None:
            raise InputError(f"evaluate --stage: {model!r} is no run folder")
        return model, None
    records = committed_stages(run)
    chosen = [record for record in records if stage is None or stage in (record.name, str(record.index))]
    if not chosen:
        raise UnknownNameError("stage", stage, [record.name for record in records])
    return str(run / "stages" / chosen[-1].name / "model"), chosen[-1]


def _figures(values: dict[str, Any]) -> dict[str, float]:
    """Metric -> value; the harness writes `acc,none` for a metric and its filter."""
    kept = {key.removesuffix(",none"): value for key, value in values.items()}
    return {key: float(value) for key, value in kept.items() if isinstance(value, int | float)}
