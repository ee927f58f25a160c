"""Line charts of the page as drawings of plain numbers; `templates/parts.html` writes them as inline SVG.

The page draws them itself, so that they follow light and dark; `figures` writes the same for papers and slides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lifelong.records import RunHistory, TrainPoint
from lifelong.report.curves import Point, life_curves, stage_spans, thinned
from lifelong.report.units import short_count, tick

WIDTH, LEFT, BOTTOM, TOP = 860, 68, 46, 34
NUM_COLOURS = 8
DASHES = ("", "7 3", "2 3")
NAMED_LINES = NUM_COLOURS * len(DASHES)  # more lines than this are told apart by their order in the stream alone
END_LABELS = 12
MANY_STAGES = 200  # a pixel or two each: shaded and drawn one by one they would only be bytes
LINE_POINTS, LINE_DOTS = 800, 200  # of a longer line every n-th point is drawn
DOTS = 400
CHARACTER_WIDTH = 6.6
BOLD_WIDTH = 1.15 * CHARACTER_WIDTH  # names at the ends of lines
TICKS = 5
MARK = "▲ grown"


def line_style(index: int, total: int) -> tuple[str, str]:
    """Colour and dash pattern of a line, different for every one; beyond `NAMED_LINES` a sweep of hues."""
    if total <= NAMED_LINES:
        return f"var(--s{index % NUM_COLOURS})", DASHES[index // NUM_COLOURS]
    return f"hsl({round(300 * index / max(total - 1, 1))} 70% var(--hue))", ""


@dataclass(frozen=True)
class Axis:
    """What an axis says: its title with the unit, how a tick is written, and whether it has any.

    `exponential`: e to the power of a value is a perplexity, which the pointer shows too.
    """

    title: str
    write: Callable[[float], str] = tick
    ticks: bool = True
    exponential: bool = False


TOKENS = Axis("tokens of training", short_count)
LOSS = Axis("held-out loss (nats per token)", exponential=True)
NOTHING = Axis("", ticks=False)


class Chart:
    """A line chart with titled axes.

    Args:
        x_range: least and greatest x.
        ys: what has to have room.
        caption: what it shows; read aloud and printed below.
        y: axis of y; one without ticks has lines at the ticks of x instead.
        x: axis of x.
        name: of the file in which it can be saved.
        low: least y, where it is not that of the data.
        size: width and height in pixels.
        sides: room beside the drawing, left and right.
    """

    def __init__(
        self, x_range: tuple[float, float], ys: Sequence[float], *, caption: str, y: Axis, x: Axis = TOKENS, name: str = "",
        low: float | None = None, size: tuple[int, int] = (WIDTH, 330), sides: tuple[int, int] = (LEFT, 16),
    ) -> None:  # fmt: skip
        self.width, self.height = size
        self.left, self.right = sides
        self.caption, self.name, self.exponential = caption, name, y.exponential
        self.x_low, self.x_high = x_range if x_range[1] > x_range[0] else (x_range[0], x_range[0] + 1.0)
        self.low, self.high = bounds(ys, low)
        self.rects: list[dict[str, Any]] = []
        self.rules: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.dots: list[dict[str, Any]] = []
        self.texts: list[dict[str, Any]] = []
        self.legend: list[dict[str, str]] = []
        self.ramp: dict[str, str] | None = None
        self.labelled = False
        self.hover: tuple[str, str] | None = None
        self.head = f"{{}} {x.title}"
        self._axes(x, y)

    def _axes(self, along: Axis, up: Axis) -> None:
        bottom, end = self.height - BOTTOM, self.width - self.right
        for value in nice_ticks(self.low, self.high) if up.ticks else ():
            y = round(self.y(value), 1)
            self.rule(self.left, end, y, y, kind="zero" if value == 0 and self.low < 0 else "grid")
            self.text(self.left - 8, y + 4, up.write(value), anchor="end")
        for value in nice_ticks(self.x_low, self.x_high) if along.ticks else ():
            x = self.x(value)
            self.text(x, bottom + 17, along.write(value), anchor="middle")
            if not up.ticks:
                self.rule(x, x, TOP, bottom, kind="zero" if value == 0 else "grid")
        self.text((self.left + end) / 2, self.height - 8, along.title, kind="axis", anchor="middle")
        self.text(13, (TOP + bottom) / 2, up.title, kind="axis", anchor="middle", turn=-90)

    def x(self, value: float) -> float:
        """Pixel of an x."""
        return self.left + (self.width - self.left - self.right) * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        """Pixel of a y."""
        return TOP + (self.height - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)

    def text(
        self, x: float, y: float, text: str, *, kind: str = "", anchor: str = "", turn: int = 0, style: str = "",
        title: str = "",
    ) -> None:  # fmt: skip
        """A text; `title` is shown under the pointer."""
        self.texts.append({
            "x": round(x, 1), "y": round(y, 1), "text": text, "kind": kind, "anchor": anchor, "turn": turn,
            "style": style, "title": title,
        })  # fmt: skip

    def rule(self, x1: float, x2: float, y1: float, y2: float, *, kind: str = "", style: str = "") -> None:
        """A straight line in pixels."""
        ends = {"x1": x1, "x2": x2, "y1": y1, "y2": y2}
        self.rules.append({**{key: round(value, 1) for key, value in ends.items()}, "kind": kind, "style": style})

    def line(self, points: Sequence[Point], style: tuple[str, str], *, name: str = "", width: float = 1.8) -> None:
        """One curve; under the pointer its values stand beside its `name`, where it has one."""
        pixels = [(self.x(x), self.y(y)) for x, y in thinned(points, LINE_POINTS) if math.isfinite(y)]
        if not pixels:
            return
        if name:
            self._follow()
        path = " ".join(f"{x:.1f},{y:.2f}" for x, y in pixels)
        self.lines.append({"points": path, "name": name, "colour": style[0], "dash": style[1], "width": f"{width:g}"})

    def _follow(self) -> None:
        """Scales of both axes, from which the script reads values back."""
        x = f"{self.left} {self.width - self.right} {self.x_low:.8g} {self.x_high:.8g}"
        self.hover = (x, f"{TOP} {self.height - BOTTOM} {self.high:.8g} {self.low:.8g}")

    def points(self, points: Sequence[Point], colour: str, *, radius: float = 3.2, titles: Sequence[str] = ()) -> None:
        """Measured points."""
        drawn = [(x, y) for x, y in thinned(points, LINE_DOTS) if math.isfinite(y)]
        for index, (x, y) in enumerate(drawn):
            title = titles[index] if index < len(titles) else ""
            self.dots.append(
                {
                    "x": round(self.x(x), 1),
                    "y": round(self.y(y), 1),
                    "r": radius,
                    "style": f"fill:{colour}",
                    "title": title,
                }
            )

    def mark(self, tokens: float) -> None:
        """A dashed vertical line."""
        x = self.x(tokens)
        self.rule(x, x, TOP, self.height - BOTTOM, style="stroke:var(--s1);stroke-dasharray:4 3")

    def bands(self, spans: Sequence[tuple[str, float, float, str]]) -> None:
        """Every second stage shaded, with its name and a remark on top where there is room."""
        for index, (name, start, end, remark) in enumerate(spans):
            left, right = self.x(start), self.x(end)
            if index % 2 and len(spans) <= MANY_STAGES:
                self.rects.append({
                    "kind": "band", "x": round(left, 1), "y": TOP, "width": round(right - left, 1),
                    "height": self.height - TOP - BOTTOM, "rx": 0,
                })  # fmt: skip
            room = int((right - left - 4) / CHARACTER_WIDTH)
            for line, text in enumerate((name, remark)):
                if text and room >= min(len(text), 4):
                    cut = text if len(text) <= room else text[: room - 1] + "…"
                    self.text(left + 3, 12 + 13 * line, cut)

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
        for y, (_, text, colour) in zip(ys, places, strict=True):
            room = int((self.right - 8) / BOLD_WIDTH)
            cut = text if len(text) <= room else text[: room - 1] + "…"
            title = text if cut != text else ""
            self.text(self.width - self.right + 6, y + 4, cut, kind="name", style=f"fill:{colour}", title=title)

    def swatches(self, names: Sequence[str], total: int = NUM_COLOURS) -> None:
        """A legend: a stroke of each line's colour and dash, and its name; one sweep of hues where they are many."""
        if total > NAMED_LINES:
            stops = ",".join(line_style(round(i * (total - 1) / 8), total)[0] for i in range(9))
            self.ramp = {"first": names[0], "last": names[-1], "stops": stops}
            return
        for index, name in enumerate(names):
            self.swatch(name, *line_style(index, total))

    def swatch(self, name: str, colour: str, dash: str = "") -> None:
        """One entry of the legend."""
        fill = f"repeating-linear-gradient(90deg,{colour} 0 5px,transparent 5px 8px)" if dash else colour
        self.legend.append({"name": name, "fill": fill})


def bounds(values: Sequence[float], low: float | None = None) -> tuple[float, float]:
    """What an axis has to show: all values and a margin, from `low` on where that is given."""
    known = [value for value in values if math.isfinite(value)]
    bottom, top = (min(known), max(known)) if known else (0.0, 1.0)
    bottom = bottom if low is None else min(low, bottom)
    margin = 0.05 * (top - bottom) or 0.05 * abs(top) or 0.5
    return (bottom - margin if low is None else bottom), top + margin


def nice_ticks(low: float, high: float) -> list[float]:
    """About `TICKS` round values between `low` and `high`."""
    span = max(high - low, 1e-12)
    step = 10.0 ** math.floor(math.log10(span / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= TICKS + 1)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, math.floor(high / step + 1e-9) + 1)]


def life_chart(history: RunHistory) -> Chart:
    """Held-out loss of every domain over the whole run, stages and growths marked."""
    curves, spans = life_curves(history), stage_spans(history)
    names, total = list(curves), len(curves)
    labelled = total <= END_LABELS
    points = [point for curve in curves.values() for point in curve.points]
    longest = max((len(name) for name in names), default=0)
    caption = "thick: the domain is being learned; dots: full evaluations"
    if any(history.probes):
        caption += "; between them probes of a part of the documents, shifted to meet the full evaluations"
    chart = Chart(
        (0.0, max((x for x, _ in points), default=1.0)), [y for _, y in points], size=(WIDTH, 380),
        sides=(LEFT, min(165, 14 + int(BOLD_WIDTH * longest)) if labelled else 16), caption=caption, name="domains", y=LOSS,
    )  # fmt: skip
    chart.bands([(span.domain, span.start, span.end, MARK if span.grown else "") for span in spans])
    for index, (name, curve) in enumerate(curves.items()):
        style = line_style(index, total)
        chart.line(curve.points, style, name=name, width=1.6 if total <= NAMED_LINES else 1.0)
        for part in curve.own if len(spans) <= MANY_STAGES else ():
            chart.line(part, (style[0], ""), width=3.4 if labelled else 2.4)
        if len(points) <= DOTS:
            chart.points(curve.ends, style[0])
    if labelled:
        last = [(name, curve.points[-1][1]) for name, curve in curves.items() if curve.points]
        chart.end_labels([(name, value, line_style(names.index(name), total)[0]) for name, value in last])
        chart.labelled = True  # the legend is for screens that show only the beginning of the lines
    chart.swatches(names, total)
    return chart


HALF = (430, 230)
Read = Callable[[TrainPoint], float | None]


def training_charts(history: RunHistory) -> list[Chart]:
    """What was logged while it trained: cross-entropy, then what there is of teaching, learning rate and gradients."""
    entropy = Axis("cross-entropy (nats per token)", exponential=True)
    text = "of the training text, replay included"
    charts = [_logged(history, lambda p: p.ce if p.ce is not None else p.loss, "training", entropy, text)]
    kl = "inheritance rate α: the teacher's weight in the loss" + _teaching_note(history)
    further: tuple[tuple[str, Read, str, str], ...] = (
        ("alpha", lambda p: p.alpha or None, "α", kl),
        ("learning-rate", lambda p: p.learning_rate or None, "learning rate", "as the optimizer got it"),
        ("gradient-norm", lambda p: p.gradient_norm, "gradient norm", "before clipping"),
    )
    for name, read, y_title, caption in further:
        if any(read(point) for points in history.train for point in points):
            charts.append(_logged(history, read, name, Axis(y_title), caption, low=0.0))
    return [chart for chart in charts if chart.lines]


def _teaching_note(history: RunHistory) -> str:
    taught = [p.kl for points in history.train for p in points if p.kl is not None and p.alpha > 0]
    return f"; KL to the teacher (× τ²) {taught[0]:.3f} nats at first, {taught[-1]:.3f} at the end" if taught else ""


def _logged(history: RunHistory, read: Read, name: str, axis: Axis, caption: str, *, low: float | None = None) -> Chart:
    """One logged figure over the whole run; recovery after a growth is grey."""
    spans = stage_spans(history)
    parts = [
        (span.domain, phase, [(start + p.tokens, value) for p in part if (value := read(p)) is not None])
        for span, points in zip(spans, history.train, strict=True)
        for start, phase, part in _phases(span.start, points)
    ]
    chart = Chart(
        (0.0, spans[-1].end if spans else 1.0), [y for *_, curve in parts for _, y in curve], low=low, caption=caption,
        y=axis, name=name, size=HALF,
    )  # fmt: skip
    chart.bands([("", span.start, span.end, "") for span in spans])
    if len(spans) > MANY_STAGES:
        chart.line([point for *_, curve in parts for point in curve], ("var(--s0)", ""), name="all stages", width=1.2)
        return chart
    for domain, phase, curve in parts:
        style = ("var(--s0)", "") if phase == "train" else ("var(--s7)", "2 3")
        chart.line(curve, style, name=domain if phase == "train" else f"{domain}, {phase}")
        if len(curve) == 1:
            chart.points(curve, style[0], radius=2.2)
    if any(phase != "train" for _, phase, _ in parts):
        chart.swatch("training", "var(--s0)")
        chart.swatch("recovery after a growth", "var(--s7)", "2 3")
    return chart


def _phases(start: float, points: Sequence[TrainPoint]) -> list[tuple[float, str, list[TrainPoint]]]:
    """Points of each phase of a stage with the tokens at which it began, in order."""
    parts: list[tuple[float, str, list[TrainPoint]]] = []
    for phase in dict.fromkeys(point.phase for point in points):
        part = [point for point in points if point.phase == phase]
        parts.append((start, phase, part))
        start += part[-1].tokens
    return parts
