"""A plan for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from lifelong.plan.memory import DeviceMemory, parts_of
from lifelong.plan.stages import RunPlan

LEFT = ("stage", "domain", "curve", "fullest at", "what")


def plan_tables(plan: RunPlan) -> Iterator[Table | Text]:
    """Tables of every stage: shape, cost, learning rate, memory of a device, disk, notes and warnings."""
    yield stages_table(plan)
    yield rates_table(plan)
    yield memory_table(plan)
    yield disk_table(plan)
    for note in plan.notes:
        yield Text(f"  {note}")
    for warning in plan.warnings:
        yield Text(f"! {warning}")


def stages_table(plan: RunPlan) -> Table:
    """Shape, parameters, tokens, steps, FLOPs and time of every stage."""
    caption = f"time by {plan.speed.describe()}" if plan.speed is not None else "time: give --flops, or --measure"
    table = _table(
        f"{plan.name}: plan",
        ("stage", "domain", "L/d/heads", "params", "tokens", "steps", "replay", "PFLOPs", "teacher", "time"),
        caption,
    )
    for stage in plan.stages:
        shape = stage.shape
        table.add_row(
            str(stage.index), stage.domain, f"{shape['layers']}/{shape['hidden_size']}/{shape['heads']}",
            short(stage.parameters), short(stage.tokens), str(stage.steps), f"{stage.replay_share:.0%}",
            _peta(stage.flops), _peta(stage.teacher_flops), duration(stage.seconds),
        )  # fmt: skip
    table.add_row(
        "all", "", "", "", short(sum(s.tokens for s in plan.stages)), str(sum(s.steps for s in plan.stages)), "",
        _peta(sum(s.flops for s in plan.stages)), _peta(sum(s.teacher_flops for s in plan.stages)),
        duration(plan.seconds),
    )  # fmt: skip
    return table


def rates_table(plan: RunPlan) -> Table:
    """Learning rate of every stage; all curves on one scale."""
    table = _table("learning rate over each stage", ("stage", "peak", "start", "end", "warm-up", "curve"))
    top = max((rate for stage in plan.stages for rate in stage.learning_rates), default=1.0)
    for stage in plan.stages:
        rates = list(stage.learning_rates)
        shown = [f"{max(rates):.1e}", f"{rates[0]:.1e}", f"{rates[-1]:.1e}"] if rates else ["", "", ""]
        table.add_row(str(stage.index), *shown, str(stage.warmup_steps), sparkline(rates, top))
    return table


def sparkline(values: list[float], largest: float) -> str:
    """A curve in one character a value."""
    bars = "▁▂▃▄▅▆▇█"
    top = max(largest, 1e-30)
    return "".join(bars[min(len(bars) - 1, int(len(bars) * max(0.0, value) / top))] for value in values)


def memory_table(plan: RunPlan) -> Table:
    """Memory of one device in every stage, in GB, part by part."""
    on = plan.devices
    where = f"one of {on.count} {on.kind} devices, {on.sharding}" if on.count > 1 else f"one {on.kind} device"
    table = _table(
        f"GB of memory on {where}",
        ("stage", "weights", "grads", "moments", "activ.", "head", "teacher", "total", "fullest at"),
    )
    for stage in plan.stages:
        memory = stage.memory
        table.add_row(
            str(stage.index), *(_giga(value) for value in parts_of(memory).values()), _giga(memory.total), memory.at
        )
    return table


def disk_table(plan: RunPlan) -> Table:
    """Disk of the run, in GB, part by part."""
    parts = asdict(plan.disk)
    table = _table("GB on disk", (*(name.replace("_", " ") for name in parts), "total"))
    table.add_row(*(_giga(value) for value in parts.values()), _giga(plan.disk.total))
    return table


def _table(title: str, headings: tuple[str, ...], caption: str | None = None) -> Table:
    table = Table(title=title, caption=caption, padding=(0, 0), collapse_padding=True)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in LEFT else "right")
    return table


def short(number: float) -> str:
    """`2.35M`, `1.2B`: three digits and a letter."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"


def duration(seconds: float | None) -> str:
    """`41s`, `12m`, `3.4h`, `2.1d`; nothing where it is not known."""
    if seconds is None:
        return ""
    for size, unit in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "m")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.3g}s"


def _peta(flops: float) -> str:
    return "" if not flops else f"{flops / 1e15:.3g}"


def _giga(size: float) -> str:
    return "0" if not size else f"{size / 1e9:.3g}"


__all__ = ["DeviceMemory", "plan_tables"]
