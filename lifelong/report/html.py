"""One self-contained page: no network, every string escaped, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from lifelong.metrics import compute_run
from lifelong.records import RunHistory
from lifelong.report.figures import stage_ends
from lifelong.report.verdict import cells, check_expectations, metric_rows, phase_costs, verdict

# Okabe-Ito colours: distinguishable with every common colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 300, 52, 36, 14, 14

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#59636e;--line:#d8dee4;--page:#fbfbfa;--card:#fff;--rise:213,94,0;--fall:0,158,115}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#9aa4af;--line:#33393f;--page:#14171a;--card:#1c2024;--rise:255,130,60;--fall:50,200,150}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:900px;margin:0 auto;padding:28px 18px 60px}h1{font-size:26px;margin:0 0 2px}h2{font-size:17px;margin:34px 0 8px}
.soft{color:var(--soft)}.verdict{font-size:18px;line-height:1.45;margin:14px 0 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px;margin:20px 0 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}.tile b{display:block;font-size:21px;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:8px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{padding:7px 12px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child>*{border-bottom:0}th:first-child,td:first-child,td.left,th.left{text-align:left}th{font-weight:600;color:var(--soft);font-size:13px}
td.left{white-space:normal;min-width:7em}td.left:last-child:not(:first-child){min-width:17em}td small{color:var(--soft);margin-left:6px}td.own{font-weight:700;box-shadow:inset 3px 0 0 var(--ink)}
svg{display:block;width:100%;min-width:540px;height:auto;font:12px system-ui,sans-serif}svg text{fill:var(--soft)}svg .grid{stroke:var(--line)}svg .mark{stroke:var(--soft);stroke-dasharray:3 3}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;padding:8px 12px;font-size:13px}.legend i{display:inline-block;width:18px;height:3px;margin-right:6px;vertical-align:middle}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px;font-size:12.5px;margin:6px 0}
details{margin:8px 0}summary{cursor:pointer}code{font-size:12.5px;overflow-wrap:anywhere}
"""


def page(history: RunHistory) -> str:
    """The whole page."""
    metrics = compute_run(history)
    sections = [
        f"<h1>{escape(history.name)}</h1><div class=soft>{escape(str(history.recipe.get('description', '')))}</div>",
        f"<p class=verdict>{escape(verdict(history))}</p>",
        unfinished(history),
        tiles(metrics),
        "<h2>Held-out perplexity after every stage</h2>",
        "<p class=soft>Bold: the domain of the stage. The small number is the rise over the domain's best so far in nats per "
        "token: orange is forgotten, green is improved since it was learned.</p>",
        heat_map(history),
        "<h2>Every domain over the whole life</h2>",
        life_chart(history),
        "<h2>Training</h2>",
        training_chart(history),
        "<h2>Metrics</h2>",
        table(("metric", "value", "unit", "meaning"), metric_rows(metrics), left=(0, 2, 3)),
        expectation_table(history, metrics),
        "<h2>Growth</h2>",
        growth_table(history),
        "<h2>Cost</h2>",
        cost_table(history),
        "<h2>Lineage</h2>",
        lineage_table(history),
        samples(history),
        environment(history),
    ]
    title = escape(history.name)
    return (
        f'<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width,initial-scale=1">'
        f'<title>{title}</title><link rel=icon href="data:,"><style>{STYLE}</style></head><body><main>'
        + "\n".join(part for part in sections if part)
        + "</main></body></html>\n"
    )


def unfinished(history: RunHistory) -> str:
    """A line for a run that goes on."""
    if not history.unfinished:
        return ""
    return f"<p><b>Unfinished.</b> Not committed yet: {escape(', '.join(history.unfinished))}.</p>"


def tiles(metrics: dict[str, float | None]) -> str:
    """The headline figures."""
    boxes = [
        f'<div class=tile title="{escape(meaning)}"><span class=soft>{escape(title)}</span><b>{value}</b><span class=soft>{escape(unit)}</span></div>'
        for title, value, unit, meaning in metric_rows(metrics)[:5]
    ]
    return f"<div class=tiles>{''.join(boxes)}</div>"


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], left: Sequence[int] = (0,)) -> str:
    """A plain table; every value is escaped."""

    def side(index: int) -> str:
        return " class=left" if index in left else ""

    head = "".join(f"<th{side(i)}>{escape(text)}</th>" for i, text in enumerate(headings))
    body = "".join(
        "<tr>" + "".join(f"<td{side(i)}>{escape(str(value))}</td>" for i, value in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>"


def heat_map(history: RunHistory) -> str:
    """The loss matrix; colour by the rise over the best so far."""
    head = "".join(f"<th>{escape(name)}</th>" for name in history.matrix.domains)
    lines = []
    for label, row in zip(("initial", *history.matrix.stages), cells(history.matrix), strict=True):
        line = f"<td>{escape(label)}</td>"
        for cell in row:
            style = ""
            if cell.rise is not None:
                strength = min(abs(cell.rise) / 0.5, 1.0) * 0.65
                style = f' style="background:rgba(var(--{"rise" if cell.rise > 0 else "fall"}),{strength:.2f})"'
            small = f"<small>{cell.rise:+.2f}</small>" if cell.rise is not None else ""
            line += f"<td{' class=own' if cell.trained else ''}{style}>{escape(cell.text)}{small}</td>"
        lines.append(f"<tr>{line}</tr>")
    return f"<div class=scroll><table><tr><th>after</th>{head}</tr>{''.join(lines)}</table></div>"


class Chart:
    """A line chart as inline SVG; x in tokens, y in nats."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.x_max = max([*xs, 1.0])
        low, high = min(ys, default=0.0), max(ys, default=1.0)
        margin = 0.05 * (high - low) or 0.5
        self.low, self.high = low - margin, high + margin
        self.parts: list[str] = []
        for step in range(5):
            value = self.low + (self.high - self.low) * step / 4
            y = self.y(value)
            self.parts.append(f"<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1={y:.1f} y2={y:.1f} />")
            self.parts.append(f"<text x={LEFT - 8} y={y + 4:.1f} text-anchor=end>{value:.2f}</text>")
            x = LEFT + (WIDTH - LEFT - RIGHT) * step / 4
            anchor = "end" if step == 4 else "middle"
            self.parts.append(
                f"<text x={x:.1f} y={HEIGHT - 12} text-anchor={anchor}>{self.x_max * step / 4 / 1e6:.2f}M</text>"
            )

    def x(self, tokens: float) -> float:
        """Pixel of a token count."""
        return LEFT + (WIDTH - LEFT - RIGHT) * tokens / self.x_max

    def y(self, nats: float) -> float:
        """Pixel of a loss."""
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - nats) / (self.high - self.low)

    def line(self, points: Sequence[tuple[float, float]], colour: str, *, dots: bool, label: str) -> None:
        """One curve; dots carry their value for the pointer."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill=none stroke="{colour}" stroke-width=2 />')
        if dots:
            for x, y in points:
                title = f"<title>{escape(label)}: {y:.4f} nats after {int(x):,} tokens</title>"
                self.parts.append(
                    f'<circle cx={self.x(x):.1f} cy={self.y(y):.1f} r=3.5 fill="{colour}">{title}</circle>'
                )

    def mark(self, tokens: float, label: str) -> None:
        """A vertical line with a word at its top."""
        x = self.x(tokens)
        self.parts.append(f"<line class=mark x1={x:.1f} x2={x:.1f} y1={TOP} y2={HEIGHT - BOTTOM} />")
        if label:
            self.parts.append(f"<text x={x + 4:.1f} y={TOP + 10}>{escape(label)}</text>")

    def svg(self, legend: Sequence[tuple[str, str]]) -> str:
        """The drawing and its legend."""
        names = "".join(f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in legend)
        return (
            f'<div class=scroll><svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img>{"".join(self.parts)}</svg>'
            f"<div class=legend>{names}<span class=soft>nats per token over tokens of training</span></div></div>"
        )


def life_chart(history: RunHistory) -> str:
    """Held-out loss of every domain, stages and growths marked, probes between them."""
    ends = stage_ends(history)
    starts = [0, *ends[:-1]] if ends else []
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in history.matrix.domains}
    for column, name in enumerate(history.matrix.domains):
        values = [history.matrix.initial[column], *(row[column] for row in history.matrix.nats_per_token)]
        curves[name] += [(x, y) for x, y in zip([0, *ends], values, strict=True) if y is not None]
    for start, probes in zip(starts, history.probes, strict=True):
        for probe in probes:
            curves[probe.domain].append((start + probe.tokens, probe.nats_per_token))
    chart = Chart([x for c in curves.values() for x, _ in c], [y for c in curves.values() for _, y in c])
    for start, record, expansion in zip(starts, history.stages, history.expansions, strict=True):
        chart.mark(start, record.domain + (" (grown)" if expansion else ""))
    legend = [(name, COLOURS[i % len(COLOURS)]) for i, name in enumerate(curves)]
    for (name, colour), points in zip(legend, curves.values(), strict=True):
        chart.line(sorted(points), colour, dots=True, label=name)
    return chart.svg(legend)


def training_chart(history: RunHistory) -> str:
    """Cross-entropy of every stage; what inheritance adds is in the table below it."""
    curves = []
    start = 0
    for record, points in zip(history.stages, history.train, strict=True):
        offset = start
        for phase in ("recover", "train"):
            part = [point for point in points if point.phase == phase]
            if part:
                curves.append(
                    (
                        f"{record.name}{'' if phase == 'train' else ' (recovery)'}",
                        [(offset + p.tokens, p.ce or p.loss) for p in part],
                    )
                )
                offset += part[-1].tokens
        start += record.tokens
    chart = Chart([x for _, c in curves for x, _ in c], [y for _, c in curves for _, y in c])
    legend = [(name, COLOURS[i % len(COLOURS)]) for i, (name, _) in enumerate(curves)]
    for (name, colour), (_, drawn) in zip(legend, curves, strict=True):
        chart.line(drawn, colour, dots=False, label=name)
    rows = []
    for record, points in zip(history.stages, history.train, strict=True):
        train = [point for point in points if point.phase == "train"]
        taught = [point for point in train if point.alpha > 0]
        replayed = sum(point.replay_tokens for point in train)
        total = train[-1].tokens if train else 0
        rows.append((
            record.name, f"{total:,}", f"{replayed:,} ({replayed / total:.1%})" if total else "0",
            f"{taught[-1].tokens:,}" if taught else "–", f"{max(p.alpha for p in taught):.2f}" if taught else "–",
        ))  # fmt: skip
    heads = ("stage", "tokens trained on", "of them replayed", "taught until token", "highest alpha logged")
    return chart.svg(legend) + "<div style='height:10px'></div>" + table(heads, rows)


def expectation_table(history: RunHistory, metrics: dict[str, float | None]) -> str:
    """What the recipe promised."""
    items = check_expectations(history, metrics)
    if not items:
        return ""
    rows = [
        (
            i.metric,
            f"{i.expected:g} ± {i.tolerance}",
            "–" if i.value is None else f"{i.value:.4g}",
            "met" if i.met else "not met",
        )
        for i in items
    ]
    return "<h2>Expected by the recipe</h2>" + table(("metric", "expected", "value", ""), rows)


def growth_table(history: RunHistory) -> str:
    """What grew and how far the function moved."""
    rows = []
    for record, report in zip(history.stages, history.expansions, strict=True):
        if report is None:
            continue
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
    return table(heads, rows, left=(0, 1))


def cost_table(history: RunHistory) -> str:
    """Tokens, FLOPs and seconds by phase, with shares."""
    phases = phase_costs(history)
    flops = sum(cost.flops for cost in phases.values()) or 1.0
    rows = [
        (
            phase,
            f"{c.tokens:,}",
            f"{c.flops:.2e}",
            f"{c.flops / flops:.1%}",
            f"{c.teacher_flops:.2e}",
            f"{c.seconds:.1f}",
        )
        for phase, c in phases.items()
    ]
    return table(("phase", "tokens", "FLOPs", "share", "of it teacher", "seconds"), rows)


def lineage_table(history: RunHistory) -> str:
    """The ledger: which stage follows which, with hashes."""
    rows = [
        (r.name, f"{r.parameters / 1e6:.2f}M", f"{r.tokens:,}", r.parent[:12], r.fingerprints.get("model", "")[:12],
         r.fingerprints.get("corpus", "")[:12], r.committed_at)
        for r in history.stages
    ]  # fmt: skip
    return table(("stage", "parameters", "tokens", "parent", "model", "corpus", "committed"), rows)


def samples(history: RunHistory) -> str:
    """Continuations of the same held-out opening before and after the stream."""
    if not history.samples:
        return ""
    last = max(sample.stage for sample in history.samples)
    parts = ["<h2>Samples</h2>"]
    for domain in history.matrix.domains:
        shown = [s for s in history.samples if s.domain == domain and s.stage in (-1, last)]
        if shown:
            body = "".join(
                f"<div class=soft>{'initial model' if s.stage < 0 else f'after stage {s.stage}'}</div><pre><b>{escape(s.prompt)}</b>{escape(s.text)}</pre>"
                for s in shown
            )
            parts.append(f"<details><summary>{escape(domain)}</summary>{body}</details>")
    return "".join(parts)


def environment(history: RunHistory) -> str:
    """Where and with what the run was made."""
    facts = {k: v for k, v in history.environment.items() if k != "packages"}
    packages = ", ".join(f"{name} {version}" for name, version in history.environment.get("packages", {}).items())
    rows = [
        *facts.items(),
        ("packages", packages),
        ("recipe", history.stages[-1].recipe_hash if history.stages else ""),
    ]
    return "<h2>Environment</h2>" + table(("", ""), rows, left=(0, 1)).replace(
        "<tr><th class=left></th><th class=left></th></tr>", ""
    )


def _scientific(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"
