"""Where a run stands: what is committed, what its process does now, and whether it lives. Only reads."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lifelong.ledger.folder import RunFolder
from lifelong.ledger.ledger import read_records
from lifelong.report.progress import clock
from lifelong.report.units import rate, short_count
from lifelong.report.verdict import perplexity_of

TAIL_BYTES = 400_000
SPEED_STEPS = 20


def run_status(path: Path) -> dict[str, Any]:
    """Plain values: committed stages, the newest step, speed, seconds left and the process.

    Raises:
        InputError: not a run folder.
    """
    run = RunFolder(path).require()
    records = [record for record in read_records(path) if record.index >= 0]
    lines = list(_tail(run.metrics))
    begun = next((line for line in reversed(lines) if line["phase"] == "begin"), None)
    planned = list(begun["stages"]) if begun else [record.domain for record in records]
    last = lines[-1] if lines else None
    alive = _is_held(run.lock)
    found: dict[str, Any] = {
        "run": str(path),
        "committed": [
            {"stage": r.name, "tokens": r.tokens, "nats_per_token": r.row.get(r.domain, {}).get("nats_per_token")}
            for r in records
        ],
        "stages": len(planned),
        "finished": len(records) >= len(planned),
        "process": _owner(run.lock) if alive else None,
        "running": alive,
    }
    if last is not None and not found["finished"]:
        found["now"] = _now(lines, last, begun)
    return found


def _now(lines: list[dict[str, Any]], last: dict[str, Any], begun: dict[str, Any] | None) -> dict[str, Any]:
    """The newest line with its speed; what is left is counted in budgets of the recipe."""
    same = [line for line in lines if line["stage"] == last["stage"] and line["phase"] == last["phase"]]
    steps = [line for line in same if "loss" in line][-SPEED_STEPS:]
    speed = None
    if len(steps) > 1 and (seconds := steps[-1]["time"] - steps[0]["time"]) > 0:
        speed = (steps[-1]["tokens"] - steps[0]["tokens"]) / seconds
    left = max(0, sum(begun["budgets"]) - last["tokens"]) if begun else None
    return {
        "stage": last["stage"], "phase": last["phase"], "step": last["step"], "tokens": last["tokens"],
        "seconds_ago": max(0.0, time.time() - last["time"]), "tokens_per_second": speed,
        "seconds_left": left / speed if left is not None and speed else None,
        **{key: last[key] for key in ("loss", "cross_entropy", "kl", "alpha") if last.get(key) is not None},
    }  # fmt: skip


def status_lines(found: dict[str, Any]) -> list[str]:
    """The same for a terminal."""
    committed = found["committed"]
    lines = [f"{found['run']}: {len(committed)} of {found['stages']} stages committed"]
    for stage in committed:
        nats = stage["nats_per_token"]
        loss = "" if nats is None else f", held-out perplexity {perplexity_of(nats)}"
        lines.append(f"  {stage['stage']}: {short_count(stage['tokens'])} tokens{loss}")
    if now := found.get("now"):
        loss = now.get("cross_entropy", now.get("loss"))
        parts = [
            f"{now['phase']} of {now['stage']}", f"step {now['step']}" if now["step"] else "",
            f"{short_count(now['tokens'])} tokens of the stream", "" if loss is None else f"loss {loss:.3f}",
            rate(now["tokens_per_second"]) if now["tokens_per_second"] else "",
            f"about {clock(now['seconds_left'])} left" if now["seconds_left"] and found["running"] else "",
        ]  # fmt: skip
        lines.append(f"now: {', '.join(filter(None, parts))} ({clock(now['seconds_ago'])} ago)")
    if found["running"]:
        lines.append(f"running: process {found['process']}")
    elif found["finished"]:
        lines.append("finished")
    else:
        lines.append("not running: the command that began it resumes it")
    return lines


def _tail(path: Path) -> Iterator[dict[str, Any]]:
    """The newest lines that are whole and ours."""
    if not path.is_file():
        return
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - TAIL_BYTES))
        first, *rest = stream.read().split(b"\n")
        stream.seek(0)
        begin = [] if size > TAIL_BYTES else [first]
    for line in [*begin, *rest]:
        try:
            data = json.loads(line)
        except ValueError:
            continue
        if isinstance(data, dict) and {"time", "stage", "phase", "step", "tokens"} <= set(data):
            yield data


def _is_held(lock: Path) -> bool:
    """Whether a process holds the lock of the run folder."""
    if not lock.is_file():
        return False
    with lock.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def _owner(lock: Path) -> str:
    return lock.read_text(errors="replace").strip()[:200] or "unknown"
