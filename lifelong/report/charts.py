"""Line charts as inline SVG: every domain over the whole run, the training loss, the inheritance rate.

The page draws them itself, so that they follow light and dark; `figures` writes the same for papers and slides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from lifelong.records import RunHistory, TrainPoint
from lifelong.report.curves import Point, life_curves, stage_spans, thinned

WIDTH, LEFT, BOTTOM, TOP = 860, 50, 34, 34
NUM_COLOURS = 8
DASHES = ("", "7 3", "2 3")
NAMED_LINES = NUM_COLOURS * len(DASHES)  # more lines than this are told apart by their order in the stream alone
END_LABELS = 12
DOTS = 400
MANY_STAGES = 200  # a pixel or two each: shaded and drawn one by one they would only be bytes
LINE_POINTS, LINE_DOTS = 800, 200  # of a longer line every n-th point is drawn
CHARACTER_WIDTH = 6.6
BOLD_WIDTH = 1.15 * CHARACTER_WIDTH  # names at the ends of lines
TICKS = 5


def line_style(index: int, total: int) -> tuple[str, str]:
    """Colour and dash pattern of a line, different for every one; beyond `NAMED_LINES` a sweep of hues."""
    if total <= NAMED_LINES:
        return f"var(--s{index % NUM_COLOURS})", DASHES[index // NUM_COLOURS]
    return f"hsl({round(300 * index / max(total - 1, 1))} 70% var(--hue))", ""


class Chart:
    """A line chart; x in tokens of training."""

    def __init__(
        self, x_max: float, ys: Sequence[float], *, height: int = 330, right: int = 16, low: float | None = None
    ) -> None:
        self.height, self.right, self.x_max = height, right, max(x_max, 1.0)
        known = [y for y in ys if math.isfinite(y)]
        bottom, top = (min(known), max(known)) if known else (0.0, 1.0)
        margin = 0.05 * (top - bottom) or 0.5
        self.low, self.high = (bottom - margin if low is None else low), top + margin
        self.behind: list[str] = []
        self.parts: list[str] = []
        self._axes()

    def _axes(self) -> None:
        for value in nice_ticks(self.low, self.high):
            y = self.y(value)
            self.behind.append(f"<line class=grid x1={LEFT} x2={WIDTH - self.right} y1={y:.1f} y2={y:.1f} />")
            self.behind.append(f"<text x={LEFT - 8} y={y + 4:.1f} text-anchor=end>{value:g}</text>")
        for tokens in nice_ticks(0, self.x_max):
            self.behind.append(
                f"<text x={self.x(tokens):.1f} y={self.height - 12} text-anchor=middle>{short_count(tokens)}</text>"
            )

    def x(self, tokens: float) -> float:
        """Pixel of a token count."""
        return LEFT + (WIDTH - LEFT - self.right) * tokens / self.x_max

    def y(self, value: float) -> float:
        """Pixel of a value."""
        return TOP + (self.height - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)

    def line(self, points: Sequence[Point], style: tuple[str, str], *, label: str, width: float = 1.8) -> None:
        """One curve; `label` shows under the pointer."""
        colour, dash = style
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in thinned(points, LINE_POINTS) if math.isfinite(y))
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<g class=line><polyline points="{path}" fill=none style="stroke:{colour}" '
            f"stroke-width={width:g}{dashed} /><title>{escape(label)}</title></g>"
        )

    def dots(self, points: Sequence[Point], colour: str, *, label: str, unit: str = "nats") -> None:
        """Measured points; each shows its value under the pointer."""
        self.parts += [
            f'<circle cx={self.x(x):.1f} cy={self.y(y):.1f} r=3.2 style="fill:{colour}">'
            f"<title>{escape(label)}: {y:.4f} {unit} after {int(x):,} tokens</title></circle>"
            for x, y in thinned(points, LINE_DOTS)
            if math.isfinite(y)
        ]

    def mark(self, tokens: float) -> None:
        """A dashed vertical line."""
        x = self.x(tokens)
        self.behind.append(
            f'<line x1={x:.1f} x2={x:.1f} y1={TOP} y2={self.height - BOTTOM} style="stroke:var(--s1)" stroke-dasharray="4 3" />'
        )

    def bands(self, spans: Sequence[tuple[str, float, float, str]]) -> None:
        """Every second stage shaded, with its name and a remark on top where there is room."""
        for index, (name, start, end, remark) in enumerate(spans):
            left, right = self.x(start), self.x(end)
            if index % 2 and len(spans) <= MANY_STAGES:
                self.behind.insert(
                    0,
                    f"<rect class=band x={left:.1f} y={TOP} width={right - left:.1f} "
                    f"height={self.height - TOP - BOTTOM} />",
                )
            room = int((right - left - 4) / CHARACTER_WIDTH)
            for line, text in enumerate((name, remark)):
                if text and room >= min(len(text), 4):
                    cut = text if len(text) <= room else text[: room - 1] + "…"
                    self.behind.append(f"<text x={left + 3:.1f} y={12 + 13 * line}>{escape(cut)}</text>")

    def end_labels(self, labels: Sequence[tuple[str, float, str]]) -> None:
        """Names beside the ends of their lines (text, value, colour), moved apart where they would overlap."""
        step, bottom = 14.0, self.height - BOTTOM
        places = sorted((self.y(value), text, colour) for text, value, colour in labels if math.isfinite(value))
        ys = [y for y, _, _ in places]
        for index in range(1, len(ys)):
            ys[index] = max(ys[index], ys[index - 1] + step)
        excess = max(0.0, ys[-1] - bottom) if ys else 0.0
        for index in range(len(ys) - 1, -1, -1):
            limit = bottom - step * (len(ys) - 1 - index)
            ys[index] = min(ys[index], limit) if excess else ys[index]
        x = WIDTH - self.right + 6
        for y, (_, text, colour) in zip(ys, places, strict=True):
            room = int((self.right - 8) / BOLD_WIDTH)
            cut = text if len(text) <= room else text[: room - 1] + "…"
            self.parts.append(
                f'<text class=name x={x} y={y + 4:.1f} style="fill:{colour}">{escape(cut)}'
                f"<title>{escape(text)}</title></text>"
            )

    def svg(self, caption: str, legend: str = "") -> str:
        """The drawing, its legend (HTML) and what it shows (text)."""
        return (
            f'<div class=scroll><svg class=chart viewBox="0 0 {WIDTH} {self.height}" role=img '
            f'aria-label="{escape(caption)}">{"".join(self.behind)}{"".join(self.parts)}</svg>'
            f"<div class=legend>{legend}<span class=soft>{escape(caption)}</span></div></div>"
        )


def nice_ticks(low: float, high: float) -> list[float]:
    """About `TICKS` round values between `low` and `high`."""
    span = max(high - low, 1e-12)
    step = 10.0 ** math.floor(math.log10(span / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= TICKS + 1)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def short_count(tokens: float) -> str:
    """A token count for an axis."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:g}{unit}"
    return f"{tokens:g}"


def swatches(names: Sequence[str], total: int) -> str:
    """A legend: a stroke of each line's colour and dash, and its name; one sweep of hues where they are many."""
    if total > NAMED_LINES:
        stops = ",".join(line_style(round(i * (total - 1) / 8), total)[0] for i in range(9))
        ramp = f'<span class=ramp style="background:linear-gradient(90deg,{stops})"></span>'
        return f"<span>{escape(names[0])}{ramp}{escape(names[-1])} (in stream order)</span>"
    parts = []
    for index, name in enumerate(names):
        colour, dash = line_style(index, total)
        fill = f"repeating-linear-gradient(90deg,{colour} 0 5px,transparent 5px 8px)" if dash else colour
        parts.append(f'<span><i style="background:{fill}"></i>{escape(name)}</span>')
    return "".join(parts)


def life_chart(history: RunHistory) -> str:
    """Held-out loss of every domain over the whole run, stages and growths marked."""
    curves, spans = life_curves(history), stage_spans(history)
    names, total = list(curves), len(curves)
    labelled = total <= END_LABELS
    points = [point for curve in curves.values() for point in curve.points]
    longest = max((len(name) for name in names), default=0)
    chart = Chart(
        max((x for x, _ in points), default=1.0), [y for _, y in points], height=380,
        right=min(165, 14 + int(BOLD_WIDTH * longest)) if labelled else 16,
    )  # fmt: skip
    chart.bands([(span.domain, span.start, span.end, "▲ grown" if span.grown else "") for span in spans])
    dots = len(points) <= DOTS
    for index, (name, curve) in enumerate(curves.items()):
        style = line_style(index, total)
        chart.line(curve.points, style, label=name, width=1.6 if total <= NAMED_LINES else 1.0)
        for part in curve.own if len(spans) <= MANY_STAGES else ():
            chart.line(part, (style[0], ""), label=f"{name}, being learned", width=3.4 if labelled else 2.4)
        if dots:
            chart.dots(curve.ends, style[0], label=name)
    if labelled:
        last = [(name, curve.points[-1][1]) for name, curve in curves.items() if curve.points]
        chart.end_labels([(name, value, line_style(names.index(name), total)[0]) for name, value in last])
    caption = "held-out nats per token over tokens of training; thick: the domain is being learned"
    if any(history.probes):
        caption += (
            "; between stages: probes of a part of the documents, shifted to meet the full evaluation at both ends"
        )
    return chart.svg(caption, "" if labelled else swatches(names, total))


def training_chart(history: RunHistory) -> str:
    """Cross-entropy of every stage as it was trained."""
    spans = stage_spans(history)
    curves = [
        [(start + point.tokens, point.ce if point.ce is not None else point.loss) for point in part]
        for span, points in zip(spans, history.train, strict=True)
        for start, part in _phases(span.start, points)
    ]
    chart = Chart(spans[-1].end if spans else 1.0, [y for curve in curves for _, y in curve], height=270)
    chart.bands([(span.domain, span.start, span.end, "") for span in spans])
    if len(spans) > MANY_STAGES:
        chart.line([point for curve in curves for point in curve], ("var(--s0)", ""), label="all stages", width=1.2)
    for span, points in zip(spans, history.train, strict=True) if len(spans) <= MANY_STAGES else ():
        for start, part in _phases(span.start, points):
            drawn = [(start + p.tokens, p.ce if p.ce is not None else p.loss) for p in part]
            style = ("var(--s0)", "") if part[0].phase == "train" else ("var(--s7)", "2 3")
            chart.line(drawn, style, label=f"{span.domain}, {part[0].phase}", width=1.8)
    legend = swatches(["training"], NUM_COLOURS)
    if any(point.phase == "recover" for points in history.train for point in points):
        legend += '<span><i style="background:var(--s7)"></i>recovery after a growth</span>'
    return chart.svg("cross-entropy of the training text, replay included, in nats per token", legend)


def alpha_chart(history: RunHistory) -> str:
    """The inheritance rate over the whole life; empty where nobody was taught."""
    if not any(point.alpha > 0 for points in history.train for point in points):
        return ""
    spans = stage_spans(history)
    chart = Chart(spans[-1].end, [0.0, max(p.alpha for points in history.train for p in points)], height=190, low=0.0)
    chart.bands([(span.domain, span.start, span.end, "") for span in spans])
    taught = []
    rates: list[Point] = []
    for span, points in zip(spans, history.train, strict=True):
        for start, part in _phases(span.start, points):
            if any(point.alpha > 0 for point in part):
                rates += (curve := [(start + p.tokens, p.alpha) for p in part])
                if len(spans) <= MANY_STAGES:
                    chart.line(curve, ("var(--s3)", ""), label=span.domain)
                taught += [(start + p.tokens, p.kl) for p in part if p.kl is not None and p.alpha > 0]
    if len(spans) > MANY_STAGES:
        chart.line(rates, ("var(--s3)", ""), label="all stages", width=1.2)
    caption = "inheritance rate α: the teacher's weight in the loss"
    if taught:
        caption += f"; KL to the teacher (× τ²) {taught[0][1]:.3f} nats at first, {taught[-1][1]:.3f} at the end"
    return chart.svg(caption, '<span><i style="background:var(--s3)"></i>α</span>')


def _phases(start: float, points: Sequence[TrainPoint]) -> list[tuple[float, list[TrainPoint]]]:
    """Points of each phase of a stage with the tokens at which it began, in order."""
    parts: list[tuple[float, list[TrainPoint]]] = []
    for phase in dict.fromkeys(point.phase for point in points):
        part = [point for point in points if point.phase == phase]
        parts.append((start, part))
        start += part[-1].tokens
    return parts
