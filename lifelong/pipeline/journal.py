"""What a run does, as it does it, in `RUN/metrics.jsonl`, and its evaluations in every tracker.

One JSON object a line: `time` (seconds since 1970), `stage`, `phase`, `step`, `tokens` (trained on since the stream
began: the x of every chart) and figures. It is no part of what is committed: a run that was killed writes the steps
after its last checkpoint again, and the last line of a step counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong.files import finite
from lifelong.ledger.folder import RunFolder, stage_name
from lifelong.metrics import compute_all
from lifelong.records import (
    DomainLoss,
    ExpansionReport,
    LossMatrix,
    ProbePoint,
    RunObserver,
    RunResult,
    StageRecord,
    TrainPoint,
)
from lifelong.train.evaluations import EvaluationTrackers

Row = dict[str, float]


class Journal(RunObserver):
    """Writes down what it is told and tells another observer too.

    Args:
        out: the run folder.
        inner: told everything as well.
        watched: names of domains that are never trained on.
        train: the recipe's `train:` section, which names the trackers.
    """

    def __init__(self, out: Path, inner: RunObserver, watched: Sequence[str], train: Mapping[str, Any]) -> None:
        self.run, self.inner, self.watched = RunFolder(out), inner, set(watched)
        self.names: list[str] = []
        self.stage = -1
        self.tokens = self.phase_start = self.done = 0
        self.domains: list[str] = []
        self.rows: list[Row] = []
        self.trackers = EvaluationTrackers(self.run, train)

    def write(self, phase: str, step: int, tokens: int, **figures: Any) -> None:
        """Append a line; a disk that refuses it stops nothing, because nothing is read back from here."""
        stage = stage_name(self.stage, self.names[self.stage]) if 0 <= self.stage < len(self.names) else "initial"
        place = {"time": round(time.time(), 3), "stage": stage, "phase": phase, "step": step, "tokens": tokens}
        line = json.dumps(finite({**place, **figures}), ensure_ascii=False) + "\n"
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.run.metrics, flags, 0o666)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)

    def run_started(self, name: str, stage_names: Sequence[str], stage_tokens: Sequence[int]) -> None:
        """The plan."""
        self.names = list(stage_names)
        self.write("begin", 0, 0, name=name, stages=list(stage_names), budgets=list(stage_tokens))
        self.inner.run_started(name, stage_names, stage_tokens)

    def stage_skipped(self, record: StageRecord) -> None:
        """Its row and its tokens are known."""
        self._take(record.domain, {domain: values["nats_per_token"] for domain, values in record.row.items()})
        self.tokens += record.tokens
        self.inner.stage_skipped(record)

    def stage_started(self, index: int, shape: Mapping[str, Any], parameters: int) -> None:
        """Its size."""
        self.stage, self.phase_start, self.done = index, self.tokens, 0
        self.write("start", 0, self.tokens, parameters=parameters, shape=dict(shape))
        self.inner.stage_started(index, shape, parameters)

    def phase_started(self, phase: str, total_tokens: int) -> None:
        """Where it begins on the axis of tokens."""
        self.phase_start, self.done = self.phase_start + self.done, 0
        self.write(phase, 0, self.phase_start, total=total_tokens)
        self.inner.phase_started(phase, total_tokens)

    def stepped(self, point: TrainPoint) -> None:
        """A logged step."""
        figures = {
            "loss": point.loss, "cross_entropy": point.ce, "kl": point.kl, "alpha": point.alpha,
            "learning_rate": point.learning_rate, "gradient_norm": point.gradient_norm,
            "replay_tokens": point.replay_tokens, "phase_tokens": point.tokens,
        }  # fmt: skip
        self.write(point.phase, point.step, self.phase_start + point.tokens, **figures)
        self.done = point.tokens
        self.inner.stepped(point)

    def advanced(self, phase: str, tokens: int, total: int) -> None:
        """Nothing to write: how far a phase without steps has come."""
        self.inner.advanced(phase, tokens, total)

    def text_read(self, domain: str, num_bytes: int) -> None:
        """Nothing to write: how much of a corpus was read."""
        self.inner.text_read(domain, num_bytes)

    def probed(self, point: ProbePoint) -> None:
        """A small evaluation."""
        self.write(
            "probe",
            point.step,
            self.phase_start + point.tokens,
            domain=point.domain,
            nats_per_token=point.nats_per_token,
        )
        self.inner.probed(point)

    def expanded(self, report: ExpansionReport) -> None:
        """A growth."""
        figures = {
            "source": dict(report.source), "target": dict(report.target), "parameters": report.parameters_after,
            "max_logit_difference": report.max_logit_difference_float64,
        }  # fmt: skip
        self.write("grow", 0, self.tokens, **figures)
        self.trackers.log(
            {
                "growth/parameters": report.parameters_after,
                "growth/max_logit_difference": report.max_logit_difference_float64,
            },
            self.tokens,
        )
        self.inner.expanded(report)

    def evaluated(self, stage: int, losses: Sequence[DomainLoss]) -> None:
        """All domains, watched ones too, and the metrics of the matrix so far."""
        row = {loss.domain: loss.nats_per_token for loss in losses}
        domain = self.names[stage] if stage >= 0 else ""
        metrics = self._take(domain, row)
        tokens = self.phase_start + self.done
        self.write("evaluated", 0, tokens, nats_per_token=row, metrics=metrics)
        known = {name: value for name, value in metrics.items() if value is not None}
        self.trackers.log(
            {f"eval/{name}": value for name, value in row.items()}
            | {f"metric/{name}": value for name, value in known.items()},
            tokens,
        )
        self.inner.evaluated(stage, losses)

    def noted(self, text: str) -> None:
        """A note."""
        self.write("note", 0, self.tokens, text=text)
        self.inner.noted(text)

    def stage_committed(self, record: StageRecord) -> None:
        """From here on its tokens count."""
        self.tokens += record.tokens
        self.phase_start, self.done = self.tokens, 0
        self.write("committed", 0, self.tokens, parameters=record.parameters)
        self.inner.stage_committed(record)

    def run_finished(self, result: RunResult) -> None:
        """The end."""
        self.write("finished", 0, self.tokens)
        self.trackers.close()
        self.inner.run_finished(result)

    def _take(self, domain: str, row: Row) -> dict[str, float | None]:
        """Add a row to the matrix; its metrics."""
        if domain and not self.rows:
            self.rows.append({})  # a run that goes on: its initial model was evaluated by an earlier process
        self.rows.append(dict(row))
        if domain:
            self.domains.append(domain)
        names = tuple(
            dict.fromkeys(
                name for known in self.rows for name in known if name not in self.watched or name in self.names
            )
        )
        initial, *rows = [tuple(known.get(name) for name in names) for known in self.rows]
        columns = tuple(names.index(name) for name in self.domains if name in names)
        if not rows or len(columns) != len(rows):
            return {}  # no metric is of the initial model alone
        stages = tuple(stage_name(index, name) for index, name in enumerate(self.domains))
        return compute_all(LossMatrix(names, stages, columns, initial, tuple(rows)))
