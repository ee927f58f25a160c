"""Drawings of a comparison: paired differences as a forest, learning against forgetting, curves over each other."""

from __future__ import annotations

from collections.abc import Sequence

from lifelong.report.charts import HALF, LEFT, LOSS, NOTHING, NUM_COLOURS, WIDTH, Axis, Chart, bounds, line_style
from lifelong.report.compare import Comparison, Estimate
from lifelong.report.equal_cost import info_of

FOREST_METRICS = ("ap", "forgetting", "worst_base_forgetting", "bits_at_equal_flops")
ROW, LABELS = 26, 250
MOST_ROWS = 40


def forests(comparison: Comparison) -> list[Chart]:
    """A forest of every main metric: difference of each group to the best with its paired interval."""
    found = []
    for name in FOREST_METRICS:
        estimates = comparison.metrics.get(name, ())
        labels = [group.label for group in comparison.groups]
        info = info_of(name)
        side = "to the left is better" if info.lower_is_better else "to the right is better"
        chart = forest(
            labels, estimates, f"{info.title}: difference to the best ({info.unit or 'no unit'})", name, side
        )
        if chart is not None:
            found.append(chart)
    return found


def forest(
    labels: Sequence[str], estimates: Sequence[Estimate], x_title: str, name: str, side: str = ""
) -> Chart | None:
    """One row a group; None without a best group or a difference."""
    rows = [(label, e) for label, e in zip(labels, estimates, strict=False) if e.best or e.difference is not None]
    if len(rows) < 2 or not any(e.best for _, e in rows):
        return None
    rows = sorted(rows[:MOST_ROWS], key=lambda row: row[1].difference or 0.0)
    ends = [v for _, e in rows for v in (0.0, e.difference, e.difference_low, e.difference_high) if v is not None]
    intervals = {e.test for _, e in rows if e.test}
    note = f"95 % intervals of paired differences ({'; '.join(sorted(intervals))})" if intervals else "no intervals: nothing could be paired"  # fmt: skip
    caption = "; ".join(filter(None, (note, side, "hollow: not told apart from the best, or not tested")))
    chart = Chart(
        bounds(ends), [0.0, float(len(rows))], low=0.0, caption=caption, y=NOTHING, x=Axis(x_title),
        name=f"forest-{name}", size=(WIDTH, 90 + ROW * len(rows)), sides=(LABELS, 16),
    )  # fmt: skip
    for place, (label, e) in enumerate(rows):
        y = chart.y(len(rows) - place - 0.5)
        chart.text(LABELS - 12, y + 4, _cut(label), kind="ink" if e.best else "", anchor="end", title=label)
        colour = "var(--s2)" if e.best else "var(--s7)" if e.within_noise or e.p_value is None else "var(--s1)"
        at = chart.x(e.difference or 0.0)
        if e.difference_low is not None and e.difference_high is not None:
            chart.rule(
                chart.x(e.difference_low), chart.x(e.difference_high), y, y, style=f"stroke:{colour};stroke-width:2"
            )
        text = "best" if e.best else f"{e.difference:+.3g}"
        hollow = not e.best and (e.within_noise or e.p_value is None)
        style = f"fill:var(--card);stroke:{colour};stroke-width:2" if hollow else f"fill:{colour}"
        chart.dots.append({"x": round(at, 1), "y": round(y, 1), "r": 5, "style": style, "title": f"{label}: {text}"})
        reach = max(at, chart.x(e.difference_high)) if e.difference_high is not None else at
        if reach > chart.width - 70:
            low = min(at, chart.x(e.difference_low)) if e.difference_low is not None else at
            chart.text(low - 10, y + 4, text, anchor="end")
        else:
            chart.text(reach + 10, y + 4, text)
    return chart


def plane(comparison: Comparison) -> Chart | None:
    """What every group learned against what it forgot, with intervals on both."""
    gains, rises = comparison.metrics.get("in_domain", ()), comparison.metrics.get("forgetting", ())
    found = [
        (group.label, gain, rise)
        for group, gain, rise in zip(comparison.groups, gains, rises, strict=False)
        if gain.mean is not None and rise.mean is not None
    ]
    if not found:
        return None

    def reach(estimates: Sequence[Estimate]) -> list[float]:
        return [v for e in estimates for v in (e.mean, e.low, e.high) if v is not None]

    chart = Chart(
        bounds(reach([gain for _, gain, _ in found])), [0.0, *reach([rise for *_, rise in found])], sides=(LEFT, 30),
        x=Axis("loss on a domain when it was just learned (nats per token): left learns more"),
        y=Axis("forgetting (nats per token)"), caption="below and to the left is better; crosses are 95 % intervals",
        name="plane", size=(WIDTH, 400),
    )  # fmt: skip
    labels: list[tuple[float, float]] = []
    for index, (label, gain, rise) in enumerate(found):
        colour, _ = line_style(index % NUM_COLOURS, NUM_COLOURS)
        assert gain.mean is not None
        assert rise.mean is not None
        x, y = chart.x(gain.mean), chart.y(rise.mean)
        if gain.low is not None and gain.high is not None:
            chart.rule(chart.x(gain.low), chart.x(gain.high), y, y, style=f"stroke:{colour};opacity:.55")
        if rise.low is not None and rise.high is not None:
            chart.rule(x, x, chart.y(rise.low), chart.y(rise.high), style=f"stroke:{colour};opacity:.55")
        title = f"{label}: loss {gain.mean:.4g}, forgetting {rise.mean:+.4g}"
        chart.dots.append({"x": round(x, 1), "y": round(y, 1), "r": 6, "style": f"fill:{colour}", "title": title})
        end, line = x > chart.width - 160, y - 8
        while any(abs(line - other) < 13 and abs(x - beside) < 160 for beside, other in labels):
            line += 13
        labels.append((x, line))
        chart.text(x - 9 if end else x + 9, line, _cut(label), kind="name", anchor="end" if end else "", style=f"fill:{colour}", title=label)  # fmt: skip
    return chart


def curve_charts(comparison: Comparison) -> list[Chart]:
    """Held-out loss over training, a chart a domain and one of their mean, a line a group."""
    labels, found = [group.label for group in comparison.groups], []
    for domain, lines in comparison.curves.items():
        points = [point for line in lines for point in line]
        if len(points) < 2:
            continue
        chart = Chart(
            (0.0, max(x for x, _ in points)), [y for _, y in points], y=LOSS, size=HALF,
            caption=domain or "mean of the domains, at the ends of stages", name=f"curves-{domain or 'mean'}",
        )  # fmt: skip
        for index, (label, line) in enumerate(zip(labels, lines, strict=True)):
            chart.line(line, line_style(index, len(labels)), name=label)
        if not domain:
            chart.swatches(labels, len(labels))
        found.append(chart)
    return found


def _cut(text: str, room: int = 30) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"
