"""The page of one run: no network, every string escaped, light and dark, readable on a phone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from lifelong.metrics import GROUPS, compute_run, metric_info
from lifelong.records import ComputeLedger, Cost, RunHistory
from lifelong.report import units
from lifelong.report.charts import life_chart, training_charts
from lifelong.report.chat import NOTE as CHAT_NOTE
from lifelong.report.chat import answers_table, chat_table, chat_warning, named_scores
from lifelong.report.downstream import caption, score_table, tasks_details
from lifelong.report.facts import facts_view
from lifelong.report.generated import generated_samples, generated_table
from lifelong.report.heatmap import fits_figures, heat_map, replay_map
from lifelong.report.lineage import lineage_chart
from lifelong.report.sources import sources_table
from lifelong.report.statement import statement, tiles
from lifelong.report.tradeoff import front_views
from lifelong.report.uncertainty import Interval, entry_intervals, metric_intervals
from lifelong.report.verdict import (
    BROKEN,
    budget_rows,
    check_expectations,
    decision,
    metric_rows,
    next_step,
    phase_costs,
    reading_note,
    verdict,
)
from lifelong.report.view import Cell, Table, render, table

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
NAMED_STAGES = 8
MOST_EMBEDDED = 300_000  # characters of matrix.json that travel inside the page
SAMPLED_DOMAINS = 12


def page(history: RunHistory, matrix: Mapping[str, Any] | None = None) -> str:
    """The whole page.

    Args:
        history: of the run.
        matrix: content of `matrix.json`, to be saved from the page where it is short.
    """
    metrics, intervals = compute_run(history), metric_intervals(history)
    watched = history.matrix.watched_matrix
    embedded = json.dumps(matrix, ensure_ascii=False) if matrix is not None else ""
    scores = named_scores(history)
    return render(
        "run.html",
        history.name,
        history=history,
        description=str(history.recipe.get("description", "")),
        statement=statement(history, intervals),
        tiles=tiles(history, intervals),
        next=next_step(history).replace("`", ""),  # code on a terminal and in Markdown
        good=_is_good(history),
        summary=f"{decision(history)} {verdict(history)}".strip(),
        unfinished=_unfinished(history),
        warnings=[note for note in (*history.notes, chat_warning(history)) if note],
        matrix=heat_map(history.matrix, entry_intervals(history) if fits_figures(history.matrix) else ()),
        watched=heat_map(watched, entry_intervals(history, watched) if fits_figures(watched) else (), "watched")
        if watched.domains
        else None,
        reading=reading_note(history),
        life=life_chart(history) if history.stages else None,
        metrics=metrics_tables(metrics, intervals),
        expectations=expectations_table(history, metrics),
        budget=budget_table(history),
        training=training_charts(history),
        stages=stages_table(history),
        replay=replay_map(history),
        generated=generated_table(history),
        written=generated_samples(history),
        lineage=lineage_chart(history),
        growth=growth_table(history),
        growth_notes=[
            f"{record.name}: {note}"
            for record, report in zip(history.stages, history.expansions, strict=True)
            for note in (report.notes if report is not None else ())
        ],
        sources=sources_table(history),
        costs=(cost_table(phase_costs(history), "phase", bars=True), stage_costs(history)),
        facts=facts_view(history),
        fronts=front_views(history),
        scores=table(*score_table(history), name="downstream"),
        tasks=tasks_details(history.tasks),
        tasks_caption=caption(history.tasks) if history.tasks else "",
        chat=table(*chat_table(scores), name="chat"),
        chat_note=CHAT_NOTE,
        answers=answers_table(history),
        samples=samples(history),
        ledger=ledger_table(history),
        environment=environment(history),
        recipe=yaml.dump(dict(history.recipe), Dumper=DUMPER, sort_keys=False, allow_unicode=True),
        command=f"lifelong run recipe.yaml --out runs/{history.name}",
        embedded=embedded if len(embedded) <= MOST_EMBEDDED else "",
    )


def _is_good(history: RunHistory) -> str:
    """The class of the line that says what follows."""
    bad = history.rejected or any(row.state == BROKEN for row in budget_rows(history))
    text = next_step(history)
    return "bad" if bad or text.startswith("Do not") else "good" if text == "Ship it." else ""


def _unfinished(history: RunHistory) -> str:
    """Notice for an unfinished run."""
    names = history.unfinished
    rest = f" and {len(names) - NAMED_STAGES} more" if len(names) > NAMED_STAGES else ""
    return f"Not committed yet: {', '.join(names[:NAMED_STAGES])}{rest}." if names else ""


def metrics_tables(
    metrics: Mapping[str, float | None], intervals: Mapping[str, Interval]
) -> list[tuple[str, Table | None]]:
    """A table of every group of metrics, with arrows to where they are better, on both scales, with intervals."""
    found = []
    known = metric_rows(metrics)
    for group in GROUPS:
        rows = []
        for row in (row for row in known if metric_info(row.name).group == group):
            bounds = intervals.get(row.name)
            between = f"{bounds.low:.3g} to {bounds.high:.3g}" if bounds else "–"
            arrow = "↓" if metric_info(row.name).lower_is_better else "↑"
            also = "" if group == "cost" else (row.also or "–", between)
            rows.append([
                Cell(f"{row.title} {arrow}", (row.meaning,)), Cell(row.value, value=metrics[row.name]), row.unit, *also,
            ])  # fmt: skip
        heads = ("metric", "value", "unit", *(() if group == "cost" else ("on the other scale", "95 % over documents")))
        if rows:
            found.append((group, table(heads, rows, left=(0, 2, 3), long=0, fold=len(rows), name=f"metrics-{group}")))
    return found


def expectations_table(history: RunHistory, metrics: Mapping[str, float | None]) -> Table | None:
    """The metrics that the recipe expects."""
    rows = [
        (
            item.metric, f"{item.expected:g} ± {item.tolerance}", "–" if item.value is None else f"{item.value:.4g}",
            item.deviation, "met" if item.met else "NOT met",
        )
        for item in check_expectations(history, metrics)
    ]  # fmt: skip
    return table(("metric", "expected", "value", "deviation", ""), rows)


def budget_table(history: RunHistory) -> Table | None:
    """The forgetting budget that every domain has used."""
    rows = [
        (row.domain, f"{row.allowed:.1%}", "–" if row.rise is None else f"{row.rise:+.1%}", row.state)
        for row in budget_rows(history)
    ]
    return table(("domain", "allowed rise of perplexity", "now above its best", ""), rows, left=(0, 3), name="budget")


def stages_table(history: RunHistory) -> Table | None:
    """Training of each stage: size, text, speed, memory, losses, and how long it was taught."""
    rows = []
    speeds = [_speed(record.cost) for record in history.stages]
    peaks, unit = units.column([history.peak_memory.get(record.name) for record in history.stages], "B")
    for record, points, speed, peak in zip(history.stages, history.train, speeds, peaks, strict=True):
        train = [point for point in points if point.phase == "train"]
        taught = [point for point in train if point.alpha > 0]
        rows.append((
            record.name, f"{record.tokens:,}", f"{record.parameters / 1e6:.2f}", "–" if speed is None else f"{speed:,.0f}",
            *((peak,) if history.peak_memory else ()), f"{train[0].ce or train[0].loss:.3f} → {train[-1].ce or train[-1].loss:.3f}" if train else "–",
            f"{taught[-1].tokens:,}" if taught else "–",
        ))  # fmt: skip
    heads = (
        "stage", "tokens", "parameters (M)", "tokens/s", *((f"peak memory ({unit})",) if history.peak_memory else ()),
        "cross-entropy (nats), first → last logged", "taught until token",
    )  # fmt: skip
    return table(heads, rows, name="stages")


def _speed(cost: Mapping[str, Any]) -> float | None:
    """Tokens per second of the training phase, probes left out."""
    train = cost.get("train", {})
    return train["tokens"] / train["seconds"] if train.get("seconds") else None


def growth_table(history: RunHistory) -> Table | None:
    """Growths: what grew and how far the function moved."""
    rows = []
    for record, report in zip(history.stages, history.expansions, strict=True):
        if report is None:
            continue
        changes = ", ".join(
            f"{axis} {old} → {report.target[axis]}" for axis, old in report.source.items() if old != report.target[axis]
        )
        rows.append((
            record.name, changes, f"{report.parameters_before / 1e6:.2f} → {report.parameters_after / 1e6:.2f}",
            _scientific(report.max_logit_difference_float64), _scientific(report.max_logit_difference_float32),
            _scientific(report.loss_difference),
        ))  # fmt: skip
    heads = (
        "stage", "sizes", "parameters (M)", "largest logit difference, float64", "float32",
        "difference of the held-out loss (nats)",
    )  # fmt: skip
    return table(heads, rows, left=(0, 1), long=1, name="growth")


def cost_table(costs: Mapping[str, Cost], what: str, *, bars: bool = False) -> Table | None:
    """Tokens, FLOPs and seconds of phases or stages, one unit a column, with their shares."""
    parts = list(costs.values())
    all_flops = sum(cost.flops for cost in parts) or 1.0
    all_seconds = sum(cost.seconds for cost in parts) or 1.0
    flops, unit = units.column([cost.flops for cost in parts], "FLOP")
    size = max((cost.flops for cost in parts), default=0.0)
    teacher = _like(flops, [cost.teacher_flops for cost in parts], size)
    seconds, time = units.column([cost.seconds for cost in parts], "s")
    rows = []
    for index, (name, cost) in enumerate(costs.items()):
        share = cost.flops / all_flops
        bar = (Cell("", bar=f"{100 * share:.2f}"),) if bars else ()
        rows.append((
            name, f"{cost.tokens:,}", flops[index], teacher[index], seconds[index], f"{cost.seconds / all_seconds:.1%}",
            f"{share:.1%}", *bar,
        ))  # fmt: skip
    heads = (
        what,
        "tokens",
        unit,
        "of it by teachers",
        time,
        "share of time",
        "share of FLOPs",
        *(("",) if bars else ()),
    )
    return table(heads, rows, name=f"cost-by-{what}")


def _like(texts: list[str], values: list[float], largest: float) -> list[str]:
    """`values` in the unit and with the decimals of a column that is written already."""
    shown, _ = units.column([*values, largest], "FLOP")
    return shown[: len(texts)]


def stage_costs(history: RunHistory) -> Table | None:
    """Cost of every stage; None where there is only one."""
    if len(history.stages) < 2:
        return None
    return cost_table({r.name: ComputeLedger.from_json(r.cost).total for r in history.stages}, "stage")


def ledger_table(history: RunHistory) -> Table | None:
    """The ledger: which stage follows which, with hashes."""
    rows = [
        (r.name, r.parent[:12], r.fingerprints.get("model", "")[:12], r.fingerprints.get("corpus", "")[:12],
         r.committed_at[:16].replace("T", " "))
        for r in history.stages
    ]  # fmt: skip
    return table(("stage", "parent", "model", "corpus", "committed"), rows)


def samples(history: RunHistory) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Domain -> (model, opening, continuation) before and after the stream."""
    if not history.samples:
        return []
    last = max(sample.stage for sample in history.samples)
    found = []
    for domain in history.matrix.domains:
        shown = [
            ("initial model" if s.stage < 0 else f"after {history.stages[s.stage].name}", s.prompt, s.text)
            for s in history.samples
            if s.domain == domain and s.stage in (-1, last)
        ]
        if shown:
            found.append((domain, shown))
    return found


def environment(history: RunHistory) -> Table | None:
    """Environment in which the run was made."""
    versions = {
        label: ", ".join(f"{name} {version}" for name, version in history.environment.get(key, {}).items())
        for key, label in (("packages", "packages"), ("newer_than_tested", "newer than tested"))
    }
    facts = {k: v for k, v in history.environment.items() if k not in ("packages", "newer_than_tested")}
    rows = [
        *((name.replace("_", " "), fact) for name, fact in facts.items()),
        *((label, text) for label, text in versions.items() if text),
        ("recipe", history.stages[-1].recipe_hash if history.stages else ""),
    ]
    return table(("", ""), rows, left=(0, 1), long=1)


def _scientific(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.0e}"
