"""Facts put into a run: log-probability over its life, the jumps, and what is left of them."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from lifelong.metrics._fact_curves import FactLife, fact_life, power_law
from lifelong.records import RunHistory
from lifelong.report.charts import Chart
from lifelong.report.curves import stage_spans, thinned
from lifelong.report.style import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_TEXTS = 6
MILLION = 1e6
LINE_POINTS = 1_200


def facts_section(history: RunHistory) -> str:
    """Chart, jumps and fit for the page; empty without facts."""
    life = fact_life(history)
    if life is None or history.facts is None:
        return ""
    spans = stage_spans(history)
    chart = Chart(spans[-1].end, [value for _, value in life.curve], height=290)
    chart.bands([(span.domain, span.start, span.end, "") for span in spans])
    for at in life.injected_at:
        chart.mark(at)
    chart.line(life.curve, ("var(--s4)", ""), label="mean over all facts", width=2.2)
    chart.dots(life.curve, "var(--s4)", label="mean over all facts")
    drawing = chart.svg(
        "mean log-probability of the missing part, in nats; dashed: the facts are among the training text"
    )
    rows = [
        (f"{int(at):,}", f"{before:.3f}", f"{peak:.3f}", f"{peak - before:+.3f}") for at, before, peak in life.jumps
    ]
    texts = "".join(f"<li>{escape(text)}</li>" for text in history.facts.texts[:SHOWN_TEXTS])
    rest = len(history.facts.texts) - SHOWN_TEXTS
    more = f"<li class=soft>and {rest} more</li>" if rest > 0 else ""
    heads = ("injected at token", "before", "highest behind it", "jump")
    return (
        f"<p class=soft>{escape(fit_sentence(life))}</p>{drawing}{table(heads, rows)}"
        f"<details><summary>{len(history.facts.texts)} facts</summary><ul>{texts}{more}</ul></details>"
    )


def fit_sentence(life: FactLife) -> str:
    """The fitted law in words."""
    fit = power_law(life.retained)
    if fit is None:
        return "Too few probes after the last injection found anything left: no law of forgetting was fitted."
    last = life.retained[-1]
    direction = (
        "" if fit.decay > 0 else " Nothing decays here: what was learned later helps the facts more than it harms them."
    )
    return (
        f"Share of the gain that is left t tokens after its peak: {fit.scale:.3g} · t^−{fit.decay:.3f} "
        f"(R² {fit.r_squared:.2f}, {fit.num_points} probes); at the end, {int(last[0]):,} tokens later, {last[1]:.0%} was "
        f"left.{direction}"
    )


def facts_figure(history: RunHistory) -> Figure | None:
    """Log-probability over the run, and what is left over tokens since the peak, both axes logarithmic."""
    life = fact_life(history)
    if life is None:
        return None
    from lifelong.report.canvas import OKABE_ITO, mark_stages, new_figure

    figure = new_figure(9, 3.6)
    over, left = figure.subplots(1, 2, width_ratios=(3, 2))
    curve = thinned(life.curve, LINE_POINTS)
    over.plot([x / MILLION for x, _ in curve], [y for _, y in curve], "o-", color=OKABE_ITO[0], markersize=3)
    for at in life.injected_at:
        over.axvline(at / MILLION, color=OKABE_ITO[1], linestyle="--", linewidth=1)
    mark_stages(over, history)
    over.set(xlabel="tokens of training (millions)", ylabel="log-probability of the facts (nats)")
    known = [(tokens, share) for tokens, share in thinned(life.retained, LINE_POINTS) if share > 0]
    if known:
        left.loglog([x for x, _ in known], [y for _, y in known], "o", color=OKABE_ITO[0], markersize=3)
    fit = power_law(life.retained)
    if fit is not None:
        ends = [known[0][0], known[-1][0]]
        label = f"{fit.scale:.2g} · t^−{fit.decay:.2f}, R² {fit.r_squared:.2f}"
        left.loglog(ends, [fit.at(tokens) for tokens in ends], color=OKABE_ITO[1], label=label)
        left.legend(frameon=False, fontsize=8)
    left.set(xlabel="tokens since the peak", ylabel="share of the gain that is left")
    return figure
