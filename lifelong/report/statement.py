"""The large statement on top of a report: what was learned, what was kept, what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from lifelong.records import Cost, RunHistory
from lifelong.report.uncertainty import Interval
from lifelong.report.units import quantity
from lifelong.report.verdict import LARGEST_EXPONENT, final_rises, learned_by_stage, perplexity_of, phase_costs

NAMED = 4
NO_DIFFERENCE = "not told apart from 0"


class Tile(NamedTuple):
    """One of the three answers: its question, the figure, what it says, and whether that is good (None: neither)."""

    what: str
    figure: str
    lines: tuple[str, ...]
    good: bool | None = None


def statement(history: RunHistory, intervals: Mapping[str, Interval]) -> str:
    """One sentence: learned, kept, cost."""
    learned = learned_by_stage(history.matrix)
    if not learned:
        return "Nothing was learned yet."
    better = [name for name, old, new in learned if new < old]
    parts = [f"Learned {_listed(list(dict.fromkeys(better)))}" if better else "Learned nothing"]
    if (kept := _kept(history, intervals)) is not None:
        rise, apart = kept
        parts.append(
            f"forgetting {NO_DIFFERENCE} (perplexity {_signed_per_cent(rise)})" if apart
            else f"forgot: {_per_cent(rise)} more perplexity on what it knew" if rise > 0
            else f"kept what it knew and got better at it ({_signed_per_cent(rise)} perplexity)"
        )  # fmt: skip
    cost = _total(history)
    return f"{'; '.join(parts)}; for {quantity(cost.flops, 'FLOP')} in {quantity(cost.seconds, 's')}."


def tiles(history: RunHistory, intervals: Mapping[str, Interval]) -> list[Tile]:
    """The three answers with their figures."""
    learned = learned_by_stage(history.matrix)
    if not learned:
        return []
    fell = sum(new < old for _, old, new in learned)
    gains = [old - new for _, old, new in learned]
    gain = math.fsum(gains) / len(gains)
    shown = tuple(
        f"{name}: perplexity {perplexity_of(old)}\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}{perplexity_of(new)}"
        for name, old, new in learned[:NAMED]
    )
    rest = (f"and {len(learned) - NAMED} more",) if len(learned) > NAMED else ()
    better = f"{fell} of {len(learned)} stages got better on their domain"
    found = [Tile("learned", f"{signed(-gain, 2)} nats/token", (better, *shown, *rest), fell == len(learned))]
    if (kept := _kept(history, intervals)) is not None:
        found.append(_kept_tile(history, kept, intervals))
    else:
        found.append(Tile("kept", "–", ("nothing was learned or watched before the last stage",)))
    cost = _total(history)
    teacher = f"{cost.teacher_flops / cost.flops:.0%} of it by teachers" if cost.flops and cost.teacher_flops else ""
    lines = (f"{cost.tokens:,} tokens in {quantity(cost.seconds, 's')}", *([teacher] if teacher else []))
    return [*found, Tile("cost", quantity(cost.flops, "FLOP"), lines)]


def _kept_tile(history: RunHistory, kept: tuple[float, bool], intervals: Mapping[str, Interval]) -> Tile:
    rise, apart = kept
    bounds = _bounds(intervals)
    lines = [f"perplexity {_signed_per_cent(rise)}" + (f", {NO_DIFFERENCE}" if apart else "")]
    if bounds is not None and not history.matrix.watched:
        lines.append(f"95 % over documents: {signed(bounds.low)} to {signed(bounds.high)}")
    worst, most = max(final_rises(history.matrix).items(), key=lambda item: item[1])
    lines.append(f"worst: {worst} {_signed_per_cent(most)}")
    return Tile("kept", f"{signed(rise)} nats/token", tuple(lines), None if apart else rise <= 0)


def _kept(history: RunHistory, intervals: Mapping[str, Interval]) -> tuple[float, bool] | None:
    """Mean rise over their best of all that was known before, and whether 0 is within its interval or it is one line."""
    rises = list(final_rises(history.matrix).values())
    if not rises:
        return None
    mean, bounds = math.fsum(rises) / len(rises), _bounds(intervals)
    known = bounds is not None and not history.matrix.watched
    return mean, known and bounds is not None and bounds.low <= 0 <= bounds.high


def _bounds(intervals: Mapping[str, Interval]) -> Interval | None:
    return intervals.get("forgetting")


def _total(history: RunHistory) -> Cost:
    return sum(phase_costs(history).values(), Cost())


def signed(value: float, decimals: int = 3) -> str:
    """A difference with its sign, the minus as long as the plus."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def _listed(names: list[str]) -> str:
    if len(names) > NAMED:
        return f"{len(names)} domains"
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _per_cent(nats: float) -> str:
    change = math.expm1(min(nats, LARGEST_EXPONENT))
    return f"{change:.1%}" if change < 9 else f"{change + 1:.3g} times"


def _signed_per_cent(nats: float) -> str:
    change = math.expm1(min(nats, LARGEST_EXPONENT))
    return f"{change:+.1%}".replace("-", "−") if change < 9 else f"× {change + 1:.3g}"
