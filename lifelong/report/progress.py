"""A live display of a run: stage, phase, tokens per second, losses, alpha, time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from lifelong.errors import printable
from lifelong.records import DomainLoss, ExpansionReport, RunObserver, RunResult, StageRecord, TrainPoint
from lifelong.report.units import column, rate
from lifelong.report.verdict import perplexity_of

PLAIN_SECONDS = 10.0
BAR_ROOM = 18  # columns of the bar, the per cent and the spaces between


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error for one piece of work; yields what tells it a text and the fraction done."""
    bar = Progress(
        TextColumn(title), BarColumn(bar_width=20), TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.description}"), console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=1.0)
        yield lambda text, fraction: bar.update(task, description=text, completed=fraction)


class RichObserver(RunObserver):
    """Two bars on a terminal (the phase and the stream), plain lines anywhere else."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[detail]}"),
            console=self.console,
            transient=True,
        )
        self.stream_task: TaskID | None = None
        self.phase_task: TaskID | None = None
        self.budgets: list[int] = []
        self.names: list[str] = []
        self.stage = -1
        self.done_tokens = 0
        self.trained_tokens = 0
        self.trained_seconds = 0.0
        self.phase_started_at = 0.0
        self.last_tokens, self.last_time, self.last_line = 0, 0.0, 0.0

    def run_started(self, name: str, stage_names: Sequence[str], stage_tokens: Sequence[int]) -> None:
        """Open the display."""
        self.names, self.budgets = list(stage_names), list(stage_tokens)
        self.say(f"{name}: {len(stage_names)} stages, {sum(stage_tokens):,} tokens: {' > '.join(stage_names)}")
        if self.console.is_terminal:
            self.progress.start()
            self.stream_task = self.progress.add_task("stream", total=sum(stage_tokens), detail="")

    def stage_skipped(self, record: StageRecord) -> None:
        """Count what is committed already."""
        self.done_tokens += self.budgets[record.index]
        self.say(f"stage {record.index} {record.domain}: committed earlier")

    def stage_started(self, index: int, shape: Mapping[str, Any], parameters: int) -> None:
        """Say what model the stage trains."""
        self.stage = index
        size = f"{shape['layers']} layers, width {shape['hidden_size']}, {shape['heads']} heads"
        self.say(f"stage {index} {self.names[index]}: {size}, {parameters / 1e6:.2f}M parameters")

    def phase_started(self, phase: str, total_tokens: int) -> None:
        """A new bar for the phase."""
        now = time.monotonic()
        self.phase_started_at, self.last_tokens, self.last_time = now, 0, now
        if not self.console.is_terminal:
            return
        if self.phase_task is not None:
            self.progress.remove_task(self.phase_task)
        self.phase_task = self.progress.add_task(phase, total=total_tokens or None, detail="")

    def stepped(self, point: TrainPoint) -> None:
        """Move the bars; without a terminal say something now and then."""
        now = time.monotonic()
        speed = (point.tokens - self.last_tokens) / max(now - self.last_time, 1e-9)
        self.last_tokens, self.last_time = point.tokens, now
        loss = f"loss {point.ce if point.ce is not None else point.loss:.3f}"
        taught = f" kl {point.kl or 0:.3f} alpha {point.alpha:.2f}" if point.alpha else ""
        if self.console.is_terminal and self.phase_task is not None and self.stream_task is not None:
            left = (self.progress.tasks[-1].total or 0) - point.tokens
            eta = f"eta {clock(left / max(speed, 1e-9))}"
            forms = (f"{rate(speed)} {loss}{taught} {eta}", f"{rate(speed)} {loss} {eta}", f"{loss} {eta}")
            room = self.console.width - len(point.phase) - BAR_ROOM  # of a narrow terminal loss and time stay
            detail = next((form for form in forms if len(form) <= room), forms[-1])
            self.progress.update(self.phase_task, completed=point.tokens, detail=detail)
            overall = self.done_tokens + (point.tokens if point.phase == "train" else 0)
            spent = self.trained_seconds + now - self.phase_started_at
            mean = max((self.trained_tokens + point.tokens) / max(spent, 1e-9), 1e-9)
            self.progress.update(
                self.stream_task,
                completed=overall,
                detail=f"stage {self.stage + 1}/{len(self.names)} eta {clock((sum(self.budgets) - overall) / mean)}",
            )
        elif now - self.last_line > PLAIN_SECONDS:
            self.last_line = now
            self.say(f"  {point.phase} {point.tokens:>9,} tokens  {rate(speed)} {loss}{taught}")

    def advanced(self, phase: str, tokens: int, total: int) -> None:
        """Move the bar of a phase; without a terminal say something now and then."""
        now = time.monotonic()
        speed = max(tokens, 1) / max(now - self.phase_started_at, 1e-9)
        detail = rate(speed)
        if self.console.is_terminal and self.phase_task is not None:
            left = clock((total - tokens) / speed)
            self.progress.update(self.phase_task, completed=tokens, total=total, detail=f"{detail} eta {left}")
        elif now - self.last_line > PLAIN_SECONDS:
            self.last_line = now
            self.say(f"  {phase} {tokens:>9,} of {total:,} tokens  {detail}")

    def text_read(self, domain: str, num_bytes: int) -> None:
        """Say how much of a corpus is prepared, and how fast; how much there is nobody knows before its end."""
        now = time.monotonic()
        seconds = max(now - self.phase_started_at, 1e-9)
        (size,), unit = column([num_bytes], "B")
        (speed,), per = column([num_bytes / seconds], "B")
        detail = f"{domain}: {size} {unit} of text, {speed} {per}/s"
        if self.console.is_terminal and self.phase_task is not None:
            self.progress.update(self.phase_task, detail=detail)
        elif now - self.last_line > PLAIN_SECONDS:
            self.last_line = now
            self.say(f"  prepare {detail}")

    def expanded(self, report: ExpansionReport) -> None:
        """Say how far the function moved."""
        changes = ", ".join(
            f"{axis} {old} > {report.target[axis]}" for axis, old in report.source.items() if old != report.target[axis]
        )
        self.say(f"  grown: {changes}; logits differ by {report.max_logit_difference_float64:.1e} (float64)")

    def evaluated(self, stage: int, losses: Sequence[DomainLoss]) -> None:
        """One line of perplexities."""
        if stage >= 0:
            self.trained_seconds += time.monotonic() - self.phase_started_at
        values = ", ".join(f"{loss.domain} {perplexity_of(loss.nats_per_token)}" for loss in losses)
        self.say(f"  held-out perplexity: {values}")

    def noted(self, text: str) -> None:
        """Pass a note on."""
        self.say(f"  note: {text}")

    def stage_committed(self, record: StageRecord) -> None:
        """The stage is safe."""
        self.done_tokens += self.budgets[record.index]
        self.trained_tokens += record.tokens

    def run_finished(self, result: RunResult) -> None:
        """Close the display."""
        del result
        self.close()

    def close(self) -> None:
        """Give the terminal back."""
        self.progress.stop()

    def say(self, text: str) -> None:
        """One line above the bars."""
        self.console.print(printable(text), highlight=False)


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    seconds = max(0, int(seconds))
    return f"{seconds // 60}:{seconds % 60:02d}" if seconds < 3600 else f"{seconds // 3600}h{seconds % 3600 // 60:02d}"


@contextlib.contextmanager
def cache_progress(*, quiet: bool = False, console: Console | None = None) -> Iterator[Callable[[int, int, int], None]]:
    """Progress of a cache that is written: a bar on a terminal, a line every few seconds anywhere else.

    Yields:
        What to call with blocks and tokens that are done, and all blocks.
    """
    console = console or Console(stderr=True)
    if quiet:
        yield lambda *_: None
        return
    columns = (TextColumn("cache"), BarColumn(bar_width=20), TextColumn("{task.percentage:>3.0f}%"))
    started = last = time.monotonic()
    with Progress(*columns, TextColumn("{task.fields[detail]}"), console=console, transient=True) as progress:
        task = progress.add_task("cache", total=None, detail="") if console.is_terminal else None

        def show(blocks: int, tokens: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            detail = f"{tokens:,} tokens, {rate(tokens / max(now - started, 1e-9))}"
            if task is not None:
                progress.update(task, completed=blocks, total=total, detail=detail)
            elif now - last > PLAIN_SECONDS:
                last = now
                console.print(f"cache: {blocks:,} of {total:,} blocks, {detail}")

        yield show
