"""The lineage of a run drawn: every stage a box as wide as the model and as high as its layers."""

from __future__ import annotations

from lifelong.records import RunHistory
from lifelong.report.charts import NOTHING, WIDTH, Chart
from lifelong.report.units import short_count

DRAWN = 10
HEIGHT, GROUND, TALLEST = 210, 148, 104
SMALLEST = 0.3  # of the largest box: a label must fit over it


def lineage_chart(history: RunHistory) -> Chart | None:
    """Boxes of the stages in order, each beside the next; of a long run the first, those that grew, and the last."""
    chosen = _chosen(history)
    if not chosen:
        return None
    stages = history.stages
    shapes = [stages[i].shape for i in chosen]
    widths, layers = ([float(shape.get(axis) or 1) for shape in shapes] for axis in ("hidden_size", "layers"))
    left_out = len(stages) - len(chosen)
    caption = "as wide as the hidden size, as high as the number of layers" + (
        f"; {left_out} stages of unchanged size are left out" if left_out else ""
    )
    chart = Chart((0.0, 1.0), [0.0, 1.0], caption=caption, y=NOTHING, x=NOTHING, size=(WIDTH, HEIGHT), name="lineage")
    slot, edge = WIDTH / len(chosen), 0.0
    for place, index in enumerate(chosen):
        record = stages[index]
        width = 0.72 * slot * max(SMALLEST, widths[place] / max(widths))
        height = TALLEST * max(SMALLEST, layers[place] / max(layers))
        middle = slot * (place + 0.5)
        chart.rects.append({
            "kind": "box", "x": round(middle - width / 2, 1), "y": round(GROUND - height, 1), "width": round(width, 1),
            "height": round(height, 1), "rx": 6,
        })  # fmt: skip
        sizes = f"{record.shape.get('layers', '?')} × {record.shape.get('hidden_size', '?')}"
        chart.text(middle, GROUND - height / 2 + 4, sizes, kind="ink name", anchor="middle")
        chart.text(middle, GROUND + 20, _cut(record.domain, slot), kind="ink name", anchor="middle", title=record.name)
        chart.text(
            middle,
            GROUND + 36,
            f"{short_count(round(record.parameters, -4) or record.parameters)} parameters"[: int(slot / 6)],
            anchor="middle",
        )
        chart.text(middle, GROUND + 52, f"{short_count(record.tokens)} tokens", anchor="middle")
        if record.expansion is not None:
            chart.text(middle, GROUND - height - 8, "▲ grown", anchor="middle")
        before, edge = edge, middle + width / 2
        if place:
            y, start, end = GROUND - 8, before + 6, middle - width / 2 - 5
            chart.rule(start, end, y, y, kind="arrow")
            chart.rule(end - 6, end, y - 4, y, kind="arrow")
            chart.rule(end - 6, end, y + 4, y, kind="arrow")
    return chart


def _chosen(history: RunHistory) -> list[int]:
    count = len(history.stages)
    if count <= DRAWN:
        return list(range(count))
    grown = [i for i, record in enumerate(history.stages) if record.expansion is not None]
    return sorted({0, *grown[-(DRAWN - 2) :], count - 1})


def _cut(text: str, slot: float) -> str:
    room = max(4, int(slot / 7.4))
    return text if len(text) <= room else text[: room - 1] + "…"
