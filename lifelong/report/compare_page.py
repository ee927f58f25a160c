"""A comparison of runs for the terminal, as Markdown and as one self-contained page."""

from __future__ import annotations

from html import escape
from pathlib import Path

from rich.table import Table
from rich.text import Text

from lifelong.files import atomic_files, write_json, write_text
from lifelong.ledger.folder import ReportFolder
from lifelong.report.compare import ALPHA, Comparison, Estimate
from lifelong.report.equal_cost import info_of
from lifelong.report.style import document, markdown_safe

TINY = 1e-3
EXPONENT = 1e6
SMALLEST_P = 1e-4
TERMINAL_GROUPS = 4  # more columns than this do not fit 80 characters: the table is turned
VERDICT_METRICS = ("ap", "forgetting", "bits_at_equal_flops")
TURNED_METRICS = ("ap", "forgetting", "bwt", "total_flops")


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write `comparison.json`, `comparison.md` and `index.html`; gives the path of the page."""
    with atomic_files(out) as made:
        write_json(made / "comparison.json", comparison.to_json())
        write_text(made / "comparison.md", comparison_markdown(comparison))
        write_text(ReportFolder(made).page, comparison_html(comparison))
    return ReportFolder(out).page


def comparison_table(comparison: Comparison) -> Table:
    """Metrics in rows, groups in columns; turned where there are many groups. Best and its equals are marked."""
    title = "comparison" + (f" · {_common_seeds(comparison)} seeds each" if _common_seeds(comparison) > 1 else "")
    table = Table(title=title, caption=_caption(comparison), caption_justify="left")
    if len(comparison.groups) <= TERMINAL_GROUPS:
        table.add_column("metric", overflow="fold")
        for heading in group_headings(comparison):
            table.add_column(heading, justify="right", overflow="fold")
        for name, estimates in comparison.metrics.items():
            table.add_row(heading_of(name, unit=False), *(_cell(estimate) for estimate in estimates))
        return table
    names = [name for name in TURNED_METRICS if name in comparison.metrics]
    table.add_column("run", overflow="fold")
    for name in names:
        table.add_column(heading_of(name, unit=False), justify="right", overflow="fold")
    for index, heading in enumerate(group_headings(comparison)):
        table.add_row(heading, *(_cell(comparison.metrics[name][index]) for name in names))
    return table


def comparison_markdown(comparison: Comparison) -> str:
    """The comparison as Markdown."""
    lines = [
        "# Comparison",
        "",
        markdown_safe(comparison_verdict(comparison)),
        "",
        *(f"- {markdown_safe(text)}" for text in comparison.differences),
        "",
    ]
    lines += ["| metric | " + " | ".join(map(markdown_safe, group_headings(comparison))) + " |"]
    lines += ["|---|" + "---:|" * len(comparison.groups)]
    for name, estimates in comparison.metrics.items():
        shown = [f"**{figure(e)}**" if e.best else f"{figure(e)} {standing(e)}".strip() for e in estimates]
        lines.append(f"| {heading_of(name)} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", f"{LEGEND} {_tests(comparison)}", ""])


def comparison_html(comparison: Comparison) -> str:
    """The comparison as one page without network access; every string escaped."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in group_headings(comparison))
    rows = []
    for name, estimates in comparison.metrics.items():
        info = info_of(name)
        line = f'<td title="{escape(info.description)}">{escape(heading_of(name, unit=False))}<br><small style="margin:0">{escape(info.unit)}</small></td>'
        for estimate in estimates:
            tinted = estimate.best or estimate.within_noise
            style = f' style="background:rgba(var(--fall),{0.35 if estimate.best else 0.12})"' if tinted else ""
            text, tested = escape(figure(estimate)), f' title="{escape(estimate.test)}"' if estimate.test else ""
            if estimate.best:
                text = f"<b>{text}</b>"
            line += f"<td{style}{tested}>{text}<br><small>{escape(standing(estimate)) or '&nbsp;'}</small></td>"
        rows.append(f"<tr>{line}</tr>")
    notes = "".join(f"<li>{escape(text)}</li>" for text in comparison.differences)
    runs = "".join(
        f"<li><b>{escape(group.label)}</b>: {escape(', '.join(group.runs))}</li>" for group in comparison.groups
    )
    sections = [
        f"<h1>Comparison</h1><p class=verdict>{escape(comparison_verdict(comparison))}</p>",
        f"<h2>Read with care</h2><ul>{notes}</ul>" if notes else "",
        f"<h2>Metrics</h2><p class=soft>{escape(LEGEND)} {escape(_tests(comparison))}</p><div class=scroll><table><tr><th>metric</th>{head}</tr>{''.join(rows)}</table></div>",
        f"<h2>Runs</h2><ul>{runs}</ul>",
    ]
    return document("Comparison", sections)


LEGEND = (
    "Mean over the runs of a group with its 95 % interval: over seeds (Student's t) where a group has several, else "
    f"over held-out documents (bootstrap). Best in bold; = not told apart from it, ≠ differs with p < {ALPHA}, "
    "corrected for several comparisons (Holm). At equal tokens, FLOPs or seconds: mean bits per byte over the whole stream "
    "at the point where every run had spent the training cost of the cheapest; linear interpolation between ends of stages."
)


def group_headings(comparison: Comparison) -> list[str]:
    """Label of every group, and its number of seeds where they are not all the same."""
    if _common_seeds(comparison):
        return [group.label for group in comparison.groups]
    return [f"{group.label} · {len(group.seeds)} seed{'s' * (len(group.seeds) > 1)}" for group in comparison.groups]


def _common_seeds(comparison: Comparison) -> int:
    """Seeds of every group; 0 where they differ."""
    counts = {len(group.seeds) for group in comparison.groups}
    return counts.pop() if len(counts) == 1 else 0


def comparison_verdict(comparison: Comparison) -> str:
    """Verdict: the best group in the main metrics, and those indistinguishable from it."""
    sentences = []
    for name in VERDICT_METRICS:
        estimates = comparison.metrics.get(name, ())
        best = next((i for i, estimate in enumerate(estimates) if estimate.best), None)
        if best is None or len(estimates) < 2:
            continue
        info = info_of(name)
        others = [
            (group.label, e) for i, (group, e) in enumerate(zip(comparison.groups, estimates, strict=True)) if i != best
        ]
        parts = []
        for words, chosen in (
            ("not told apart from it", [label for label, e in others if e.within_noise]),
            ("worse", [label for label, e in others if e.p_value is not None and not e.within_noise]),
            ("not tested", [label for label, e in others if e.p_value is None]),
        ):
            if chosen:
                parts.append(f"{words}: {', '.join(chosen)}")
        lead = f"{info.title}: {comparison.groups[best].label} is {'lowest' if info.lower_is_better else 'highest'}"
        sentences.append(f"{lead} ({figure(estimates[best])} {info.unit}); {'; '.join(parts)}.")
    return " ".join(sentences)


def heading_of(name: str, *, unit: bool = True) -> str:
    """Title and unit of a metric, with an arrow to where it is better."""
    info = info_of(name)
    return f"{info.title} {'↓' if info.lower_is_better else '↑'}" + (f" ({info.unit})" if unit and info.unit else "")


def figure(estimate: Estimate) -> str:
    """The mean and half the width of its interval, or the interval where it is asymmetric."""
    if estimate.mean is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return _short(estimate.mean)
    below, above = estimate.mean - estimate.low, estimate.high - estimate.mean
    if min(below, above) < 0.8 * max(below, above):
        return f"{_short(estimate.mean)} [{_short(estimate.low)}, {_short(estimate.high)}]"
    half = float(f"{max(below, above):.2g}")
    return f"{_short(estimate.mean)} ± {_short(half) if TINY <= half < EXPONENT else f'{half:.2g}'}"


def standing(estimate: Estimate) -> str:
    """How an estimate compares with the best one."""
    if estimate.p_value is None:
        return ""
    sign = "=" if estimate.within_noise else "≠"
    return f"{sign} p={estimate.p_value:.2g}" if estimate.p_value >= SMALLEST_P else f"{sign} p<{SMALLEST_P:g}"


def _cell(estimate: Estimate) -> Text:
    if estimate.best:
        return Text(figure(estimate), style="bold green")
    mark = "" if estimate.p_value is None else " =" if estimate.within_noise else " ≠"
    return Text(figure(estimate) + mark)


def _tests(comparison: Comparison) -> str:
    tests = sorted({e.test for estimates in comparison.metrics.values() for e in estimates if e.test})
    return f"Tests: {'; '.join(tests)}." if tests else ""


def _caption(comparison: Comparison) -> str | None:
    tests = sorted({e.test for estimates in comparison.metrics.values() for e in estimates if e.test})
    notes = [f"! {text}" for text in comparison.differences]
    if tests:
        notes.append(f"= not told apart from the best, ≠ p < {ALPHA} ({'; '.join(tests)})")
    return "\n".join(notes) or None


def _short(value: float) -> str:
    if abs(value) >= EXPONENT:
        return f"{value:.4g}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
