"""A comparison of runs for the terminal, as Markdown and as one self-contained page."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from markupsafe import Markup
from rich.table import Table as TerminalTable
from rich.text import Text

from lifelong.files import atomic_files, write_json, write_text
from lifelong.ledger.folder import ReportFolder
from lifelong.report.compare import ALPHA, COST_METRICS, EQUAL_COST, Comparison, Estimate
from lifelong.report.compare_charts import curve_charts, forests, plane
from lifelong.report.equal_cost import info_of
from lifelong.report.latex import latex_safe, latex_table
from lifelong.report.units import column
from lifelong.report.verdict import perplexity_of
from lifelong.report.view import Cell, Table, markdown_safe, render, table

TINY = 1e-3
EXPONENT = 1e6
SMALLEST_P = 1e-4
TERMINAL_GROUPS = 4  # more columns than this do not fit 80 characters: the table is turned
VERDICT_METRICS = ("ap", "forgetting", "bits_at_equal_flops")
TURNED_METRICS = ("ap", "forgetting", "bwt", "total_flops")


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write `comparison.json`, `comparison.md`, `comparison.tex` and `index.html`; gives the path of the page."""
    with atomic_files(out) as made:
        write_json(made / "comparison.json", comparison.to_json())
        write_text(made / "comparison.md", comparison_markdown(comparison))
        write_text(made / "comparison.tex", comparison_latex(comparison))
        write_text(ReportFolder(made).page, comparison_html(comparison))
    return ReportFolder(out).page


def comparison_table(comparison: Comparison) -> TerminalTable:
    """Metrics in rows, groups in columns; turned where there are many groups. Best and its equals are marked."""
    title = "comparison" + (f" · {_common_seeds(comparison)} seeds each" if _common_seeds(comparison) > 1 else "")
    table = TerminalTable(title=title, caption=_caption(comparison), caption_justify="left")
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
    return render(
        "comparison.html",
        "Comparison",
        statement=verdict_sentences(comparison),
        differences=comparison.differences,
        legend=LEGEND,
        tests=_tests(comparison),
        forests=forests(comparison),
        plane=plane(comparison),
        curves=curve_charts(comparison),
        metrics=_metrics_view(comparison),
        domains=_domains_view(comparison),
        recipe=table(
            ("key", *group_headings(comparison)), [(key, *values) for key, values in comparison.recipe.items()],
            left=tuple(range(len(comparison.groups) + 1)), name="recipes",
        ),
        costs=_costs_view(comparison),
        groups=comparison.groups,
        command=f"lifelong report {' '.join(shlex.quote(run) for group in comparison.groups for run in group.runs)}",
    )  # fmt: skip


def _metrics_view(comparison: Comparison) -> Table | None:
    rows = []
    for name, estimates in comparison.metrics.items():
        if name not in COST_METRICS:
            info = info_of(name)
            title = Cell(heading_of(name, unit=False), (info.unit,) if info.unit else (), info.description)
            means = [e.mean for e in estimates]
            equal = ("the same",) if len(means) > 1 and None not in means and len(set(means)) == 1 else ()
            rows.append([title, *(_entry(e, equal) for e in estimates)])
    return table(("metric", *group_headings(comparison)), rows, name="metrics", fold=len(rows))


def _domains_view(comparison: Comparison) -> Table | None:
    """Final loss of every domain, with its perplexity."""
    rows = [
        [name, *(_entry(e, () if e.mean is None else (f"perplexity {perplexity_of(e.mean)}",)) for e in estimates)]
        for name, estimates in comparison.domains.items()
    ]
    return table(("domain", *group_headings(comparison)), rows, name="domains")


def _costs_view(comparison: Comparison) -> Table | None:
    """Cost in one unit, and as a multiple of the cheapest."""
    rows = []
    for name in COST_METRICS:
        estimates = comparison.metrics.get(name, ())
        means = [e.mean for e in estimates]
        least = min((mean for mean in means if mean), default=None)
        if least is None:
            continue
        info = info_of(name)
        shown, unit = column(means, info.unit)
        rows.append([
            Cell(info.title, (unit,)),
            *(Cell(text, () if mean is None else (f"{mean / least:.2f}×",), value=mean)
              for text, mean in zip(shown, means, strict=True)),
        ])  # fmt: skip
    return table(("cost", *group_headings(comparison)), rows, name="cost")


def _entry(estimate: Estimate, small: tuple[str, ...] = ()) -> Cell:
    tint = f"rgba(var(--fall),{0.35 if estimate.best else 0.12})" if estimate.best or estimate.within_noise else ""
    text = figure(estimate)
    return Cell(
        text, (*small, *filter(None, [standing(estimate)])), estimate.test, estimate.mean, tint,
        "best" if estimate.best else "",
    )  # fmt: skip


def comparison_latex(comparison: Comparison) -> str:
    """The metrics and the domains as tables for a paper (booktabs)."""
    heads = group_headings(comparison)
    metrics = [
        [heading_of(name), *(_latex_figure(e) for e in estimates)] for name, estimates in comparison.metrics.items()
    ]
    domains = [[name, *(_latex_figure(e) for e in estimates)] for name, estimates in comparison.domains.items()]
    parts = [latex_table(["metric", *heads], metrics)]
    if domains:
        parts.append(latex_table(["final loss, nats per token", *heads], domains))
    return "\n".join(parts)


def _latex_figure(estimate: Estimate) -> str | Markup:
    text = latex_safe(figure(estimate))
    return Markup(rf"\textbf{{{text}}}") if estimate.best else Markup(text)  # noqa: S704 - LaTeX, escaped


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
    """Verdict: the best group in the main metrics, and those indistinguishable from it; seeds and cost."""
    return " ".join(verdict_sentences(comparison))


def verdict_sentences(comparison: Comparison) -> list[str]:
    """The sentences of the verdict, the most important one first."""
    sentences, priced = [], ""
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
        price = "" if priced else _price(comparison, best)  # once, in the headline
        priced = priced or comparison.groups[best].label
        sentences.append(f"{lead} ({figure(estimates[best])} {info.unit}){price}; {'; '.join(parts)}.")
    equal = [
        info_of(name).title
        for name in VERDICT_METRICS
        if len(found := [e.mean for e in comparison.metrics.get(name, ())]) > 1
        and None not in found
        and len(set(found)) == 1
    ]
    if equal:
        sentences.append(f"{' and '.join(equal)}: the same in every run.")
    cost = _cost_sentence(comparison, said=priced)
    return [sentence for sentence in (*sentences, _seeds_sentence(comparison), cost) if sentence]


def _seeds_sentence(comparison: Comparison) -> str:
    counts = sorted({len(group.seeds) for group in comparison.groups})
    if counts == [1]:
        return "One seed each: this speaks about these models, not about the methods."
    return f"Seeds: {counts[0]} each." if len(counts) == 1 else f"Seeds: {counts[0]} to {counts[-1]} a group."


def _price(comparison: Comparison, best: int) -> str:
    """What the best group took, where another one was cheaper: a lower loss that was paid for is no better method."""
    flops = [e.mean for e in comparison.metrics.get("total_flops", ())]
    known = [(value, group.label) for value, group in zip(flops, comparison.groups, strict=False) if value]
    if len(known) < 2 or not (own := flops[best]) or own <= min(known)[0] * (1 + EQUAL_COST):
        return ""
    return f" for {own / min(known)[0]:.2f} times the FLOPs of {min(known)[1]}"


def _cost_sentence(comparison: Comparison, said: str) -> str:
    """How much more the most expensive group took, where it is worth a word; not of one of which it was said."""
    means = [
        (e.mean, group.label)
        for e, group in zip(comparison.metrics.get("total_flops", ()), comparison.groups, strict=False)
        if e.mean
    ]
    if len(means) < 2 or max(means)[0] <= min(means)[0] * (1 + EQUAL_COST) or max(means)[1] == said:
        return ""
    return f"{max(means)[1]} took {max(means)[0] / min(means)[0]:.2f} times the FLOPs of {min(means)[1]}."


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
    if not TINY <= half < EXPONENT or abs(estimate.mean) >= EXPONENT:
        return f"{_short(estimate.mean)} ± {half:.2g}" if half else _short(estimate.mean)
    decimals = max(0, 1 - math.floor(math.log10(half)))
    return f"{estimate.mean:,.{decimals}f} ± {half:,.{decimals}f}"


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
