"""Facts put into a run: log-probability over its life, the jumps, and what is left of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lifelong.metrics._fact_curves import FactLife, fact_life, power_law
from lifelong.records import RunHistory
from lifelong.report.charts import WIDTH, Axis, Chart
from lifelong.report.curves import stage_spans, thinned
from lifelong.report.view import Table, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MILLION = 1e6
LINE_POINTS = 1_200


class FactsView(NamedTuple):
    """Facts as the page shows them."""

    sentence: str
    chart: Chart
    jumps: Table | None
    texts: tuple[str, ...]


def facts_view(history: RunHistory) -> FactsView | None:
    """Chart, jumps and fit for the page; None without facts."""
    life = fact_life(history)
    if life is None or history.facts is None:
        return None
    spans = stage_spans(history)
    chart = Chart(
        (0.0, spans[-1].end), [value for _, value in life.curve], size=(WIDTH, 300), name="facts",
        caption="dashed: the facts are among the training text", y=Axis("log-probability of the missing part (nats)"),
    )  # fmt: skip
    chart.bands([(span.domain, span.start, span.end, "") for span in spans])
    for at in life.injected_at:
        chart.mark(at)
    chart.line(life.curve, ("var(--s4)", ""), name="mean over all facts", width=2.2)
    chart.points(life.curve, "var(--s4)")
    rows = [
        (f"{int(at):,}", f"{before:.3f}", f"{peak:.3f}", f"{peak - before:+.3f}") for at, before, peak in life.jumps
    ]
    jumps = table(("injected at token", "before", "highest after it", "jump"), rows, name="facts")
    return FactsView(fit_sentence(life), chart, jumps, history.facts.texts)


def fit_sentence(life: FactLife) -> str:
    """The fitted law in words; no law where the facts went on rising, for which it has no meaning."""
    fit = power_law(life.retained)
    if fit is None:
        return "Too few probes after the last injection found anything left: no law of forgetting was fitted."
    tokens, left = life.retained[-1]
    if fit.decay <= 0 or left > 1:
        return (
            f"Nothing decayed: {int(tokens):,} tokens after the peak the facts stand at {left:.1f} times what their "
            "injection had gained, because what was learned later helped them more than it harmed them. No law of "
            "forgetting describes that."
        )
    return (
        f"Share of the gain that is left t tokens after its peak: {fit.scale:.3g} · t^−{fit.decay:.3f} "
        f"(R² {fit.r_squared:.2f}, {fit.num_points} probes); at the end, {int(tokens):,} tokens later, {left:.0%} is left."
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
    if fit is not None and fit.decay > 0:
        ends = [known[0][0], known[-1][0]]
        label = f"{fit.scale:.2g} · t^−{fit.decay:.2f}, R² {fit.r_squared:.2f}"
        left.loglog(ends, [fit.at(tokens) for tokens in ends], color=OKABE_ITO[1], label=label)
        left.legend(frameon=False, fontsize=8)
    left.set(xlabel="tokens since the peak", ylabel="share of the gain that is left")
    return figure
