"""The page of one run: no network, no scripts, every string escaped, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from lifelong.metrics import compute_run
from lifelong.records import ComputeLedger, RunHistory
from lifelong.report.charts import alpha_chart, life_chart, training_chart
from lifelong.report.chat import chat_section, chat_warning
from lifelong.report.downstream import downstream_section
from lifelong.report.facts import facts_section
from lifelong.report.heatmap import fits_figures, heat_map, replay_map
from lifelong.report.style import document, folded, table
from lifelong.report.tradeoff import front_sections
from lifelong.report.uncertainty import Interval, entry_intervals, metric_intervals
from lifelong.report.verdict import budget_rows, check_expectations, decision, metric_rows, phase_costs, verdict

TILES = 5
SAMPLED_DOMAINS = 12


def page(history: RunHistory) -> str:
    """The whole page."""
    metrics = compute_run(history)
    sections = {
        "Held-out perplexity": matrix_section(history),
        "Watched": watched_section(history),
        "Loss per domain over training": life_chart(history),
        "Metrics": metrics_section(history, metrics),
        "Training": training_chart(history) + alpha_chart(history) + training_table(history),
        "Replay": replay_map(history),
        "Growth": growth_table(history),
        "Cost": cost_section(history),
        "Facts": facts_section(history),
        "Interpolation": front_sections(history),
        "Downstream": downstream_section(history),
        "Chat": chat_section(history),
        "Samples": samples(history),
        "Lineage": lineage_table(history),
        "Environment": environment(history),
    }
    shown = {title: body for title, body in sections.items() if body}
    links = "".join(f'<a href="#{anchor(title)}">{escape(title)}</a>' for title in shown)
    return document(
        history.name,
        [
            f"<h1>{escape(history.name)}</h1>",
            f"<div class=soft>{escape(str(history.recipe.get('description', '')))}</div>",
            f"<p class=verdict>{escape(decision(history))}</p>",
            f"<p class=soft>{escape(verdict(history))}</p>",
            unfinished(history),
            "".join(f"<p class=warn>{escape(note)}</p>" for note in (*history.notes, chat_warning(history)) if note),
            tiles(metrics, metric_intervals(history)),
            f"<nav>{links}</nav>",
            *(f'<h2 id="{anchor(title)}">{escape(title)}</h2>{body}' for title, body in shown.items()),
        ],
    )


def matrix_section(history: RunHistory) -> str:
    """The heat map and how to read it."""
    figures = fits_figures(history.matrix)
    return MATRIX_NOTE + heat_map(history.matrix, entry_intervals(history) if figures else ())


def watched_section(history: RunHistory) -> str:
    """Heat map of the domains that are measured and never trained on; empty where none is watched."""
    matrix = history.matrix.watched_matrix
    if not matrix.domains:
        return ""
    figures = fits_figures(matrix)
    return WATCHED_NOTE + heat_map(matrix, entry_intervals(history, matrix) if figures else ())


WATCHED_NOTE = (
    "<p class=soft>Domains that are never trained on and never replayed: what the stream does to the rest of what the "
    "base model knew. The small number is the rise over the best so far, the base model included, in nats per token.</p>"
)
MATRIX_NOTE = (
    "<p class=soft>A row is the model after a stage, a column a domain. ● is the domain of the stage. The small number is "
    "the rise over the domain's best since it was learned, in nats per token: orange is forgotten, green is better than "
    "ever. The 95 % interval over documents is under the pointer.</p>"
)


def anchor(title: str) -> str:
    """The id of a section."""
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def unfinished(history: RunHistory) -> str:
    """Notice for an unfinished run."""
    if not history.unfinished:
        return ""
    names = ", ".join(history.unfinished[:8]) + (f" and {len(history.unfinished) - 8} more" if len(history.unfinished) > 8 else "")  # fmt: skip
    return f"<p class=warn><b>Unfinished.</b> Not committed yet: {escape(names)}.</p>"


def tiles(metrics: Mapping[str, float | None], intervals: Mapping[str, Interval]) -> str:
    """The headline figures with their intervals over documents."""
    boxes = []
    for row in metric_rows(metrics)[:TILES]:
        bounds = intervals.get(row.name)
        room = f"<small>95 %: {bounds.low:.3g} to {bounds.high:.3g}</small>" if bounds else ""
        boxes.append(
            f'<div class=tile title="{escape(row.meaning)}"><span class=soft>{escape(row.title)}</span><b>{row.value}</b>'
            f"<span class=soft>{escape(row.unit)}</span>{room}</div>"
        )
    return f"<div class=tiles>{''.join(boxes)}</div>"


def metrics_section(history: RunHistory, metrics: Mapping[str, float | None]) -> str:
    """Every metric with its interval, what the recipe promised, and what the budget allows."""
    intervals = metric_intervals(history)
    rows = []
    for row in metric_rows(metrics):
        bounds = intervals.get(row.name)
        between = f"{bounds.low:.4g} to {bounds.high:.4g}" if bounds else "–"
        rows.append((row.title, row.value, between, row.unit, row.meaning))
    text = table(("metric", "value", "95 % over documents", "unit", "meaning"), rows, left=(0, 3, 4), long=4)
    return text + expectation_table(history, metrics) + budget_table(history)


def expectation_table(history: RunHistory, metrics: Mapping[str, float | None]) -> str:
    """Table of the metrics that the recipe expects."""
    rows = [
        (
            item.metric,
            f"{item.expected:g} ± {item.tolerance}",
            "–" if item.value is None else f"{item.value:.4g}",
            item.deviation,
            "met" if item.met else "NOT met",
        )
        for item in check_expectations(history, metrics)
    ]
    heads = ("metric", "expected", "value", "deviation", "")
    return "<h3>Expected by the recipe</h3>" + table(heads, rows) if rows else ""


def budget_table(history: RunHistory) -> str:
    """Table of the forgetting budget that every domain has used."""
    rows = [
        (row.domain, f"{row.allowed:.1%}", "–" if row.rise is None else f"{row.rise:+.1%}", row.state)
        for row in budget_rows(history)
    ]
    heads = ("domain", "allowed rise of perplexity", "now above its best", "")
    return "<h3>Forgetting budget</h3>" + table(heads, rows, left=(0, 3)) if rows else ""


def training_table(history: RunHistory) -> str:
    """Table of the training of each stage, and how long it was taught."""
    rows = []
    for record, points in zip(history.stages, history.train, strict=True):
        train = [point for point in points if point.phase == "train"]
        taught = [point for point in train if point.alpha > 0]
        rows.append((
            record.name, f"{record.tokens:,}", f"{record.parameters / 1e6:.2f}M",
            f"{train[0].ce or train[0].loss:.3f} → {train[-1].ce or train[-1].loss:.3f}" if train else "–",
            f"{taught[-1].tokens:,}" if taught else "–",
        ))  # fmt: skip
    heads = ("stage", "tokens", "parameters", "cross-entropy, first → last logged", "taught until token")
    return "<div style='height:10px'></div>" + table(heads, rows)


def growth_table(history: RunHistory) -> str:
    """Table of growths: what grew and how far the function moved."""
    rows, notes = [], []
    for record, report in zip(history.stages, history.expansions, strict=True):
        if report is None:
            continue
        notes += [f"<p class=soft>{escape(record.name)}: {escape(note)}</p>" for note in report.notes]
        changes = ", ".join(
            f"{axis} {old} → {report.target[axis]}" for axis, old in report.source.items() if old != report.target[axis]
        )
        rows.append((
            record.name, changes, f"{report.parameters_before / 1e6:.2f}M → {report.parameters_after / 1e6:.2f}M",
            _scientific(report.max_logit_difference_float64), _scientific(report.max_logit_difference_float32),
            _scientific(report.loss_difference),
        ))  # fmt: skip
    if not rows:
        return "<p class=soft>The model kept its size.</p>"
    heads = ("stage", "sizes", "parameters", "max |Δ logit| float64", "float32", "Δ held-out loss")
    return table(heads, rows, left=(0, 1), long=1) + "".join(notes)


def cost_section(history: RunHistory) -> str:
    """Tokens, FLOPs and seconds by phase with their shares, then by stage."""
    phases = phase_costs(history)
    flops = sum(cost.flops for cost in phases.values()) or 1.0
    seconds = sum(cost.seconds for cost in phases.values()) or 1.0
    lines = []
    for phase, cost in phases.items():
        share = cost.flops / flops
        figures = (f"{cost.tokens:,}", f"{cost.flops:.2e}", f"{cost.teacher_flops:.2e}", f"{cost.seconds:.1f}")
        lines.append(
            f"<tr><td>{escape(phase)}</td>"
            + "".join(f"<td>{value}</td>" for value in figures)
            + f"<td>{cost.seconds / seconds:.1%}</td><td>{share:.1%}</td>"
            + f'<td class=bar><i style="width:{100 * share:.2f}%"></i></td></tr>'
        )
    heads = ("phase", "tokens", "FLOPs", "of which teacher", "seconds", "share of time", "share of FLOPs", "")
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    text = f"<div class=scroll><table><tr>{head}</tr>{''.join(lines)}</table></div>"
    if len(history.stages) < 2:
        return text
    rows = []
    for record in history.stages:
        total = ComputeLedger.from_json(record.cost).total
        rows.append((record.name, f"{total.tokens:,}", f"{total.flops:.2e}", f"{total.teacher_flops:.2e}", f"{total.seconds:.1f}", f"{total.flops / flops:.1%}"))  # fmt: skip
    by_stage = table(("stage", "tokens", "FLOPs", "of which teacher", "seconds", "share of FLOPs"), rows)
    return f"{text}<details><summary>by stage</summary>{by_stage}</details>"


def lineage_table(history: RunHistory) -> str:
    """The ledger: which stage follows which, with hashes."""
    rows = [
        (r.name, f"{r.parameters / 1e6:.2f}M", f"{r.tokens:,}", r.parent[:12], r.fingerprints.get("model", "")[:12],
         r.fingerprints.get("corpus", "")[:12], r.committed_at[:16].replace("T", " "))
        for r in history.stages
    ]  # fmt: skip
    heads = ("stage", "parameters", "tokens", "parent", "model", "corpus", "committed")
    note = (
        "<p class=soft>SHA-256, the first twelve digits. Every line of the ledger carries the hash of the one before; "
        "<code>lifelong check RUN</code> compares every file with it.</p>"
    )
    return note + table(heads, rows)


def samples(history: RunHistory) -> str:
    """Continuations of the same held-out opening before and after the stream."""
    if not history.samples:
        return ""
    last = max(sample.stage for sample in history.samples)
    parts: list[str] = []
    for domain in history.matrix.domains:
        shown = [s for s in history.samples if s.domain == domain and s.stage in (-1, last)]
        if shown:
            body = "".join(
                f"<div class=soft>{'initial model' if s.stage < 0 else escape(f'after {history.stages[s.stage].name}')}</div>"
                f"<pre><b>{escape(s.prompt)}</b>{escape(s.text)}</pre>"
                for s in shown
            )
            parts.append(f"<details{' open' if not parts else ''}><summary>{escape(domain)}</summary>{body}</details>")
    note = (
        "<p class=soft>Greedy continuations of the opening (bold) of a held-out document, "
        "before and after the stream.</p>"
    )
    text = "".join(parts)
    return note + (folded(text, len(parts), "domains") if len(parts) > SAMPLED_DOMAINS else text)


def environment(history: RunHistory) -> str:
    """Environment in which the run was made."""
    versions = {
        label: ", ".join(f"{name} {version}" for name, version in history.environment.get(key, {}).items())
        for key, label in (("packages", "packages"), ("newer_than_tested", "newer than tested"))
    }
    facts = {k: v for k, v in history.environment.items() if k not in ("packages", "newer_than_tested")}
    rows = [
        *facts.items(),
        *((label, text) for label, text in versions.items() if text),
        ("recipe", history.stages[-1].recipe_hash if history.stages else ""),
    ]
    return table(("", ""), rows, left=(0, 1), long=1)


def _scientific(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"
