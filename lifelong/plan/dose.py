"""`plan --probe`: what a budget would cost, from short pieces of the stage instead of the whole of it.

Two pieces of the first stage that has something to forget are run in a temporary folder, at two replay shares; where
there is no memory yet, one piece, whose weights are averaged with those that it began from. Each gives a point of the
plane of learning against forgetting; a straight line between two points gives the share that keeps a budget. What a
piece sees is then carried to the length of the stage by a power law in tokens, whose exponents `benchmarks/dose.py`
measured on the recorded streams: an extrapolation, and said so.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from lifelong.errors import InputError
from lifelong.ledger.history import read_history
from lifelong.lineage.front import interpolation_front
from lifelong.pipeline import run_recipe
from lifelong.plan.show import short
from lifelong.plan.stages import stage_arguments
from lifelong.recipe.files import parse_recipe
from lifelong.recipe.recipe import Recipe
from lifelong.records import LossMatrix, RunObserver
from lifelong.report.table import plain_table
from lifelong.report.verdict import DEFAULT_BUDGET

PIECE = 1 / 8  # of the stage
FEWEST_STEPS = 20
LOW_SHARE, HIGH_SHARE = 0.05, 0.3
WEIGHTS = (0.25, 0.5, 0.75, 1.0)
# gain and rise go as tokens^exponent: those with which pieces met the recorded ends of stages (benchmarks/dose.py)
LEARNING = {"replay share": 0.2, "weight": 0.2}
FORGETTING = {"replay share": -0.2, "weight": 0.15}
RECORDED = (
    "on recorded streams of a small model, from which its exponents are, such figures were 0.90 to 1.04 of what was "
    "learned in the end and 0.7 to 1.9 of what was lost"
)


@dataclass(frozen=True)
class DosePoint:
    """One dose: a replay share, or a weight of the trained model; figures in nats per token, at the stage's length."""

    dose: float
    learned: float
    rises: Mapping[str, float]

    def carried(self, ratio: float, kind: str) -> DosePoint:
        """The point after `ratio` times as many tokens."""
        rises = {name: rise * ratio ** FORGETTING[kind] for name, rise in self.rises.items()}
        return DosePoint(self.dose, self.learned * ratio ** LEARNING[kind], rises)


@dataclass(frozen=True)
class Dose:
    """Points of a stage, as the pieces saw them and carried to its length. `kind`: `replay share` or `weight`."""

    stage: int
    domain: str
    kind: str
    tokens: int
    piece_tokens: int
    seen: tuple[DosePoint, ...]
    carried: tuple[DosePoint, ...]
    budgets: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values, and the advice."""
        return {**asdict(self), "advice": self.advice, "recorded_error": RECORDED}

    @property
    def advice(self) -> str:
        """What the budget costs, in one sentence."""
        best = max(self.carried, key=lambda point: point.learned)
        if best.learned <= 0:
            return f"{self.domain} did not get better in the piece: look at the learning rate before at the budget."
        dose = self.dose_within_budget()
        named = ", ".join(f"{name} {budget:.1%}" for name, budget in self.budgets.items())
        if dose is None:
            kept = min(self.carried, key=self._excess)
            worst = max(self.budgets, key=lambda name: kept.rises[name] - math.log1p(self.budgets[name]))
            return (
                f"No {self.kind} that was tried keeps {named}: at {kept.dose:.2g} {worst} would still rise by "
                f"{math.expm1(kept.rises[worst]):.1%}. A lower learning rate or fewer tokens would."
            )
        learned = self._at(dose).learned
        lost = 1 - learned / best.learned
        cost = f"costs about {lost:.0%} of what {self.domain} learns" if lost > 0.005 else "costs nothing that shows"
        return f"Keeping {named} {cost} ({learned:.2f} instead of {best.learned:.2f} nats): {self.kind} {dose:.2g}."

    def dose_within_budget(self) -> float | None:
        """The dose that learns most and keeps every budget; None where none does."""
        first, last = self.carried[0].dose, self.carried[-1].dose
        doses = [first + (last - first) * number / 100 for number in range(101)]
        kept = [dose for dose in doses if self._excess(self._at(dose)) <= 0]
        return max(kept, key=lambda dose: self._at(dose).learned, default=None)

    def _excess(self, point: DosePoint) -> float:
        return max(point.rises[name] - math.log1p(budget) for name, budget in self.budgets.items())

    def _at(self, dose: float) -> DosePoint:
        """On the line between the two neighbours."""
        left, right = next(
            (pair for pair in pairwise(self.carried) if dose <= pair[1].dose), (self.carried[-2], self.carried[-1])
        )
        part = (dose - left.dose) / (right.dose - left.dose)
        rises = {name: rise + part * (right.rises[name] - rise) for name, rise in left.rises.items()}
        return DosePoint(dose, left.learned + part * (right.learned - left.learned), rises)


def probe_dose(recipe: Recipe, observer: RunObserver | None = None) -> Dose:
    """Run the pieces; a few minutes for what takes an hour.

    Raises:
        InputError: the recipe has no stage that could forget something which is measured.
    """
    index = _probed_stage(recipe)
    section = recipe.stages[index]
    piece = _piece_tokens(recipe, index)
    with tempfile.TemporaryDirectory(prefix="lifelong-probe-") as name:
        here = Path(name)
        if recipe.replay is not None and (index or _has_memory_at_once(recipe)):
            kind, doses = "replay share", _shares(recipe.replay.share)
            matrices = [_run(recipe, index, piece, here / f"{dose:g}", dose, observer) for dose in doses]
            seen = [_point(dose, matrix, index) for dose, matrix in zip(doses, matrices, strict=True)]
            matrix = matrices[0]
        else:
            kind, matrix = "weight", _run(recipe, index, piece, here / "piece", None, observer)
            seen = _averaged(here / "piece", matrix, index)
    ratio = max(1.0, section.tokens / piece)
    budgets = {name: recipe.budget.get(name, DEFAULT_BUDGET) for name in seen[0].rises}
    carried = tuple(point.carried(ratio, kind) for point in seen)
    domain = matrix.domains[matrix.stage_domains[index]]
    return Dose(index, domain, kind, section.tokens, piece, tuple(seen), carried, budgets)


def _probed_stage(recipe: Recipe) -> int:
    """The first stage with replay; the first at all where a checkpoint is adapted and nothing is replayed."""
    later = recipe.replay is not None and recipe.replay.memory_tokens and len(recipe.stages) > 1
    replayed = later or _has_memory_at_once(recipe)
    if recipe.model.checkpoint is None:
        raise InputError(
            "plan --probe: starts from a checkpoint (`model: {checkpoint: ...}`); a model with random weights has "
            "nothing to forget that a short piece could show"
        )
    if not recipe.watch and not later:
        raise InputError(
            "plan --probe: nothing is measured that could be forgotten; name general text in `watch:`, or replay "
            "earlier stages with `replay:`"
        )
    return 1 if replayed and not _has_memory_at_once(recipe) else 0


def _has_memory_at_once(recipe: Recipe) -> bool:
    """Whether there is text to replay before any stage: of public stand-ins, or written by the base model."""
    replay = recipe.replay
    return replay is not None and bool(replay.proxy or replay.generate)


def _piece_tokens(recipe: Recipe, index: int) -> int:
    arguments = stage_arguments(recipe, index)
    step = arguments.train_batch_size * arguments.gradient_accumulation_steps * recipe.sequence_length
    tokens = recipe.stages[index].tokens
    return min(tokens, max(int(tokens * PIECE), FEWEST_STEPS * int(step)))


def _shares(share: float) -> tuple[float, float]:
    """The recipe's share and a small one; two usual ones where the recipe's is small itself."""
    return LOW_SHARE, share if share > 2 * LOW_SHARE else HIGH_SHARE


def _run(
    recipe: Recipe, index: int, tokens: int, out: Path, share: float | None, observer: RunObserver | None
) -> LossMatrix:
    """The stages up to `index`, none longer than the piece; a broken budget is a figure here and no end."""
    plain = recipe.to_plain()
    plain["stages"] = [{**stage, "tokens": min(tokens, stage["tokens"])} for stage in plain["stages"][: index + 1]]
    plain["evaluate"] = {**plain.get("evaluate", {}), "samples": 0, "probes": 0, "chat": "off"}
    for key in ("budget", "expect", "facts"):
        plain.pop(key, None)
    if share is not None:
        plain["replay"] = {**plain["replay"], "share": share, "mix": "uniform"}
        if generate := plain["replay"].get("generate"):
            plain["replay"]["generate"] = {**generate, "tokens": min(tokens, generate["tokens"])}
    return run_recipe(parse_recipe(plain), out, observer).matrix


def _point(dose: float, matrix: LossMatrix, index: int) -> DosePoint:
    own = matrix.domains[matrix.stage_domains[index]]
    earlier = [matrix.domains[column] for column in matrix.stage_domains[:index]]
    until = {
        name: [_loss(value) for value in matrix.series(name)[: index + 2]] for name in (own, *earlier, *matrix.watched)
    }
    kept = dict.fromkeys(name for name in (*earlier, *matrix.watched) if name != own)
    rises = {name: until[name][-1] - min(until[name][:-1]) for name in kept}
    return DosePoint(dose, until[own][-2] - until[own][-1], rises)


def _averaged(run: Path, matrix: LossMatrix, index: int) -> list[DosePoint]:
    recipe = dict(read_history(run).recipe)
    front = interpolation_front(run, recipe, (0.0, *WEIGHTS), str(index))
    start, domain = front.points[0].losses, matrix.domains[matrix.stage_domains[index]]
    return [
        DosePoint(
            point.weight,
            start[domain] - point.losses[domain],
            {name: point.losses[name] - start[name] for name in matrix.watched},
        )
        for point in front.points[1:]
    ]


def _loss(value: float | None) -> float:
    assert value is not None, "every domain of a piece is evaluated after every stage of it"
    return value


def plot(points: Sequence[DosePoint], budgets: Mapping[str, float], width: int = 56, height: int = 9) -> str:
    """The plane in characters: learned to the right, the worst rise downward, budget as a line."""
    worst = [max(point.rises.values()) for point in points]
    limit = math.log1p(min(budgets.values()))
    top, bottom = min(0.0, *worst), max(limit, *worst)
    right = max(1e-12, *(point.learned for point in points))

    def row_of(rise: float) -> int:
        return round((rise - top) / max(1e-12, bottom - top) * (height - 1))

    rows = [[" "] * width for _ in range(height)]
    rows[row_of(limit)] = ["·"] * width
    for point, rise in zip(points, worst, strict=True):
        label = f"●{point.dose:.2g}"
        at = min(width - len(label), max(0, round(max(0.0, point.learned) / right * (width - len(label)))))
        rows[row_of(rise)][at : at + len(label)] = label
    lines = ["kept"] + ["│" + "".join(row).rstrip() for row in rows]
    return "\n".join([*lines, "└" + "─" * (width - 8) + " learned", "· the tightest budget"])


def dose_parts(dose: Dose) -> Iterator[Table | Text]:
    """Table, plane and advice, as `plan --probe` prints them."""
    names = list(dose.budgets)
    heads = (dose.kind, "learned", *names, "", "learned", *names)
    rows = [
        (f"{seen.dose:.2g}", *_figures(seen, names), "→", *_figures(carried, names))
        for seen, carried in zip(dose.seen, dose.carried, strict=True)
    ]
    ahead = f"{short(dose.piece_tokens)} tokens, carried to {short(dose.tokens)}"
    yield plain_table(f"stage {dose.stage}, {dose.domain}: {ahead}; nats learned, rise of the perplexity", heads, rows)
    yield Text(plot(dose.carried, dose.budgets))
    yield Text(f"{dose.advice} An extrapolation: {RECORDED}.")


def _figures(point: DosePoint, names: Sequence[str]) -> list[str]:
    return [f"{point.learned:.3f}", *(f"{math.expm1(point.rises[name]):+.1%}" for name in names)]
