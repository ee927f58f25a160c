"""One metric of a whole run per file; no torch; the folder is the registry.

`R[t][k]` is the held-out loss on domain k after stage t in nats per token; row -1 is the initial model.

Signs, stated once: losses and everything called *forgetting*, *gap* or AP+ are positive when a domain got
worse, so lower is better; everything called *transfer* (BWT, FWT) or *gain* is positive when it helped.

A metric is a module with `TITLE`, `DESCRIPTION`, `UNIT`, `LOWER_IS_BETTER`, optionally `GROUP` (learned, kept,
transferred or cost: where a report shows it), and one function: either
`compute(matrix: LossMatrix)` or, where training curves or costs are needed, `compute_history(history: RunHistory)`.
Both give a float, or None where the metric is not defined (a single stage has forgotten nothing yet).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

from lifelong.plugins import load_plugin, plugin_names, remembered
from lifelong.records import LossMatrix, RunHistory

PACKAGE = "lifelong.metrics"
FURTHER = "further"
GROUPS = ("learned", "kept", "transferred", "cost", FURTHER)


@dataclass(frozen=True)
class MetricInfo:
    """Description of a metric for tables; `name` is its key in `matrix.json` and in `expect:`."""

    name: str
    title: str
    description: str
    unit: str
    lower_is_better: bool
    needs_history: bool
    group: str = FURTHER


def metric_names() -> list[str]:
    """Keys of all metrics, as `matrix.json` and `expect:` write them (`ap_plus`)."""
    return list(_names())


@cache
def metric_info(name: str) -> MetricInfo:
    """Title, unit and direction of one metric.

    Raises:
        UnknownNameError: no such metric; offers the nearest.
    """
    module = _module(name)
    return MetricInfo(
        name=name.replace("-", "_"),
        title=module.TITLE,
        description=module.DESCRIPTION,
        unit=module.UNIT,
        lower_is_better=module.LOWER_IS_BETTER,
        needs_history=not hasattr(module, "compute"),
        group=getattr(module, "GROUP", FURTHER),
    )


def compute_all(matrix: LossMatrix) -> dict[str, float | None]:
    """Every metric that a loss matrix alone defines, by its key."""
    return {name: _module(name).compute(matrix) for name in metric_names() if not metric_info(name).needs_history}


@remembered
def compute_run(history: RunHistory) -> dict[str, float | None]:
    """Every metric of a run: of its matrix, its probes during training and its cost."""
    return {
        name: _module(name).compute_history(history)
        if metric_info(name).needs_history
        else _module(name).compute(history.matrix)
        for name in metric_names()
    }


def matrix_up_to(matrix: LossMatrix, stage: int) -> LossMatrix:
    """The matrix as it stood after stage `stage`: metrics of it are the metrics at that time."""
    end = stage + 1
    return LossMatrix(
        domains=matrix.domains,
        stages=matrix.stages[:end],
        stage_domains=matrix.stage_domains[:end],
        initial=matrix.initial,
        nats_per_token=matrix.nats_per_token[:end],
        bits_per_byte=matrix.bits_per_byte[:end],
        tokens=matrix.tokens[:end],
        initial_bits_per_byte=matrix.initial_bits_per_byte,
        watched=matrix.watched,
        watched_initial=matrix.watched_initial,
        watched_nats_per_token=matrix.watched_nats_per_token[:end],
    )


@cache
def _names() -> tuple[str, ...]:
    return tuple(name.replace("-", "_") for name in plugin_names(PACKAGE))


@cache
def _module(name: str) -> ModuleType:
    return load_plugin(PACKAGE, name, kind="metric")
