"""Several runs side by side: seeds grouped, means with intervals, and whether a difference is real.

Runs whose recipes differ in nothing but the seed are one group. With seeds on both sides, groups are compared
by a paired t-test over seeds; single runs by a bootstrap over the held-out documents they share, which says
nothing about seeds and is marked so. Every group is compared with the best one, and the p-values of a metric
are corrected for the number of those comparisons (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from lifelong.files import finite
from lifelong.metrics import compute_run, metric_info, metric_names
from lifelong.records import RunHistory
from lifelong.report.curves import Point, life_curves, thinned
from lifelong.report.equal_cost import NAMES, PREFIX, equal_cost_values, info_of
from lifelong.report.uncertainty import (
    bootstrap_p_value,
    document_tokens,
    documents_match,
    holm,
    percentile_interval,
    resampled_metrics,
    resampled_rows,
    t_interval,
    t_test,
)
from lifelong.report.verdict import HEADLINE_METRICS

ALPHA = 0.05
COST_METRICS = ("total_tokens", "total_flops", "total_seconds")
EQUAL_COST = 0.02
MOST_DOMAINS, DRAWN_DOMAINS = 100, 6
CURVE_POINTS = 400
NO_LABEL = ("name", "description", "seed", "expect")


@dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ in nothing but the seed."""

    label: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Estimate:
    """A metric of a group: mean over runs, an interval, and how it compares with the best group.

    `p_value` is corrected for several comparisons; `test` names where it comes from, and is empty where
    nothing could be tested. The best group has neither. `difference` is that to the best group, paired where runs can
    be, with its own interval: it is narrower than those of the two means where they share seeds or documents.
    """

    mean: float | None
    low: float | None = None
    high: float | None = None
    interval_over: str = ""
    best: bool = False
    p_value: float | None = None
    test: str = ""
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None

    @property
    def within_noise(self) -> bool:
        """Whether it is indistinguishable from the best."""
        return self.p_value is not None and self.p_value >= ALPHA


@dataclass(frozen=True)
class Comparison:
    """Groups, best mean AP first; metric -> one estimate a group; and what limits the comparison.

    `domains` holds the final loss of every domain as metrics do; `recipe` the keys in which recipes differ, with a text
    a group; `curves` a line a group for every domain, and for their mean (`""`), as (tokens, nats per token).
    """

    groups: tuple[Group, ...]
    metrics: Mapping[str, tuple[Estimate, ...]]
    differences: tuple[str, ...]
    domains: Mapping[str, tuple[Estimate, ...]] = field(default_factory=dict)
    recipe: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    curves: Mapping[str, tuple[tuple[Point, ...], ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite becomes null."""
        cleaned: dict[str, Any] = finite(asdict(self))
        return cleaned


def compare_runs(histories: Sequence[RunHistory]) -> Comparison:
    """Group runs by recipe and compare the groups metric by metric."""
    values = {id(history): compute_run(history) for history in histories}
    groups = _grouped(histories)
    groups.sort(key=lambda group: _order(_mean([values[id(run)]["ap"] for run in group])))
    labels = _labels([group[0].recipe for group in groups])
    same_stream = len({_stream(history) for history in histories}) == 1
    same_tokenizer = _paired(groups, [_tokenizer(history) for history in histories], histories)
    drawn = _draw(groups)
    metrics = {}
    for name in _metric_order():
        by_group = [{_seed(run): values[id(run)][name] for run in group} for group in groups]
        if any(value is not None for group in by_group for value in group.values()):
            across_tokenizers = same_tokenizer or metric_info(name).unit == "bits/byte"
            comparable = name in COST_METRICS or (same_stream and across_tokenizers)
            metrics[name] = _estimates(name, by_group, [group.get(name, []) for group in drawn], comparable)
    for name in NAMES if len(groups) > 1 else ():
        found = equal_cost_values(groups, name.removeprefix(PREFIX))
        if any(value is not None for group in found for value in group):
            by_group = [
                dict(zip(map(_seed, group), row, strict=True)) for group, row in zip(groups, found, strict=True)
            ]
            metrics[name] = _estimates(name, by_group, [[] for _ in groups], same_stream)
    return Comparison(
        tuple(
            Group(label, tuple(run.path for run in group), tuple(_seed(run) for run in group))
            for label, group in zip(labels, groups, strict=True)
        ),
        metrics,
        tuple(_limits(histories, labels, metrics, groups)),
        _by_domain(groups, same_tokenizer) if same_stream else {},
        _recipe_differences([group[0].recipe for group in groups]),
        _curves(groups) if same_stream else {},
    )


def _by_domain(groups: Sequence[Sequence[RunHistory]], comparable: bool) -> dict[str, tuple[Estimate, ...]]:
    """Final loss of every domain, watched ones too, in nats per token."""
    matrices = [run.matrix for group in groups for run in group]
    names = list(dict.fromkeys(name for matrix in matrices for name in (*matrix.domains, *matrix.watched)))
    single = [group[0] for group in groups]
    paired = all(len(group) == 1 for group in groups) and all(documents_match(single[0], run) for run in single[1:])
    rows = [resampled_rows(run) if paired else {} for run in single]
    found = {}
    for name in names[:MOST_DOMAINS]:
        by_group = [{_seed(run): _final(run, name) for run in group} for group in groups]
        drawn = [list(map(float, row[name][:, -1])) if name in row else [] for row in rows]
        found[name] = _estimates("in_domain", by_group, drawn, comparable)
    return found


def _final(run: RunHistory, domain: str) -> float | None:
    matrix = run.matrix
    return matrix.series(domain)[-1] if domain in (*matrix.domains, *matrix.watched) else None


def _recipe_differences(recipes: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Keys in which the recipes of the groups differ from the first, and what each says."""
    keys = dict.fromkeys(key for recipe in recipes[1:] for key in _differing(recipes[0], recipe, NO_LABEL))
    return {key: tuple(_text(_at(recipe, key)) for recipe in recipes) for key in keys}


def _curves(groups: Sequence[Sequence[RunHistory]]) -> dict[str, tuple[tuple[Point, ...], ...]]:
    """Held-out loss of every domain, and their mean at the ends of stages, of the first run of every group."""
    lives = [life_curves(group[0]) for group in groups]
    names = [name for name in lives[0] if all(name in life for life in lives)][:DRAWN_DOMAINS]
    found = {name: tuple(tuple(thinned(life[name].points, CURVE_POINTS)) for life in lives) for name in names}
    means = []
    for life in lives:
        by_end: dict[float, list[float]] = {}
        for name in names:
            for tokens, loss in life[name].ends:
                by_end.setdefault(tokens, []).append(loss)
        means.append(tuple((x, sum(ys) / len(ys)) for x, ys in sorted(by_end.items()) if len(ys) == len(names)))
    return {"": tuple(means), **found} if names else {}


def _paired(groups: Sequence[Sequence[RunHistory]], values: Sequence[Any], histories: Sequence[RunHistory]) -> bool:
    """Whether runs agree in a value: all of them, or those of one seed where every group has the same seeds.

    A tokenizer trained anew for every seed differs between seeds and not between the methods of a seed: paired
    differences over seeds are as valid as with one tokenizer.
    """
    if len(set(values)) == 1:
        return True
    by_seed: dict[int, set[Any]] = {}
    for history, value in zip(histories, values, strict=True):
        by_seed.setdefault(_seed(history), set()).add(value)
    same_seeds = len({frozenset(_seed(run) for run in group) for group in groups}) == 1
    return same_seeds and all(len(found) == 1 for found in by_seed.values())


def _grouped(histories: Sequence[RunHistory]) -> list[list[RunHistory]]:
    """Runs with equal recipes but for the seed; a seed that was run twice opens a group of its own."""
    groups: list[list[RunHistory]] = []
    for history in histories:
        for group in groups:
            same = not _differing(group[0].recipe, history.recipe, NO_LABEL[1:])
            if same and _seed(history) not in {_seed(run) for run in group}:
                group.append(history)
                break
        else:
            groups.append([history])
    return groups


def _labels(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Recipe names; where several groups share one, what sets each apart from the first of that name."""
    first: dict[str, Mapping[str, Any]] = {}
    labels: list[str] = []
    for recipe in recipes:
        name = str(recipe.get("name", "run"))
        if name not in first:
            first[name] = recipe
            labels.append(name)
            continue
        changed = _differing(first[name], recipe, NO_LABEL)
        label = f"{name} ({', '.join(f'{key}={_short(_at(recipe, key))}' for key in changed[:3])})" if changed else name
        repeats = sum(known == label or known.startswith(f"{label} #") for known in labels)
        labels.append(label if not repeats else f"{label} #{repeats + 1}")
    return labels


def _draw(groups: Sequence[Sequence[RunHistory]]) -> list[dict[str, list[float | None]]]:
    """Metrics on resampled documents, only where no seeds can be compared and all runs saw the same documents."""
    single = [group[0] for group in groups if len(group) == 1]
    if len(single) < len(groups) or not all(documents_match(single[0], run) for run in single[1:]):
        return [{} for _ in groups]
    return [resampled_metrics(run) for run in single]


def _estimates(
    name: str,
    by_group: Sequence[Mapping[int, float | None]],
    drawn: Sequence[Sequence[float | None]],
    comparable: bool,
) -> tuple[Estimate, ...]:
    known = [{seed: value for seed, value in group.items() if value is not None} for group in by_group]
    means = [_mean(list(group.values())) for group in known]
    finite = [mean for mean in means if mean is not None]
    best_mean = (min if info_of(name).lower_is_better else max)(finite) if finite and comparable else None
    equal = len(finite) > 1 and len(set(finite)) == 1  # then nobody is the best
    best = means.index(best_mean) if best_mean is not None and not equal else None
    tests: list[tuple[float, str] | None] = []
    for index, group in enumerate(known):
        if best is None or index == best or not group:
            tests.append(None)
        elif drawn[index] and drawn[best]:
            tests.append(_document_test(drawn[index], drawn[best]))
        else:
            tests.append(t_test(group, known[best]))
    tested = [index for index, test in enumerate(tests) if test is not None]
    corrected = dict(zip(tested, holm([test[0] for test in tests if test is not None]), strict=True))
    estimates = []
    for index, group in enumerate(known):
        interval, over = t_interval(list(group.values())), f"{len(group)} seeds"
        if interval is None and drawn[index]:
            interval, over = percentile_interval(drawn[index]), "documents"
        test = tests[index]
        apart = (
            None
            if best is None or index == best or not group
            else _difference(group, known[best], drawn[index], drawn[best])
        )
        estimates.append(
            Estimate(
                means[index],
                interval.low if interval else None,
                interval.high if interval else None,
                over if interval else "",
                index == best,
                corrected.get(index),
                test[1] if test is not None else "",
                *(apart or (None, None, None)),
            )
        )
    return tuple(estimates)


def _difference(
    one: Mapping[int, float],
    best: Mapping[int, float],
    drawn: Sequence[float | None],
    drawn_best: Sequence[float | None],
) -> tuple[float, float | None, float | None] | None:
    """Mean difference to the best group and its interval: over shared seeds, else over documents, else none."""
    shared = sorted(set(one) & set(best))
    if shared:
        pairs = [one[seed] - best[seed] for seed in shared]
        middle, interval = math.fsum(pairs) / len(pairs), t_interval(pairs)
    else:
        means = [math.fsum(group.values()) / len(group) for group in (one, best) if group]
        if len(means) < 2:
            return None
        middle, interval = means[0] - means[1], None
    if interval is None and drawn and drawn_best:
        known = [a - b for a, b in zip(drawn, drawn_best, strict=True) if a is not None and b is not None]
        interval = percentile_interval(known)
    return (middle, interval.low, interval.high) if interval else (middle, None, None)


def _document_test(one: Sequence[float | None], best: Sequence[float | None]) -> tuple[float, str] | None:
    pairs = [a - b for a, b in zip(one, best, strict=True) if a is not None and b is not None]
    return (bootstrap_p_value(pairs), "documents only, one seed") if pairs else None


def _limits(
    histories: Sequence[RunHistory],
    labels: Sequence[str],
    metrics: Mapping[str, tuple[Estimate, ...]],
    groups: Sequence[Sequence[RunHistory]],
) -> list[str]:
    """Limits of the comparison: what is not comparable, and what still is."""
    found = []
    if not _paired(groups, [_tokenizer(history) for history in histories], histories):
        found.append(
            "the runs differ in their tokenizers: losses per token and perplexities do not compare and no best is "
            "marked; bits per byte do, where the domains are the same"
        )
    streams = {_stream(history) for history in histories}
    if len(streams) > 1:
        shared = set.intersection(*(set(history.matrix.domains) for history in histories))
        same = f"entries of {', '.join(sorted(shared))}, and cost" if shared else "cost"
        found.append(
            f"the runs differ in their domains or their order: averages over domains are not comparable, only {same}"
        )
    if len({len(history.stages) for history in histories}) > 1:
        found.append("the runs differ in their committed stages: final metrics are not comparable")
    found += [
        f"{history.path} is unfinished: {', '.join(history.unfinished)} not committed yet"
        for history in histories
        if history.unfinished
    ]
    documents = [tuple(sorted(document_tokens(history).items())) for history in histories]
    if len(streams) == 1 and not _paired(groups, documents, histories):
        found.append("the runs differ in their held-out documents: compare only large differences")
    for name in COST_METRICS:
        means = [(estimate.mean, label) for estimate, label in zip(metrics.get(name, ()), labels, strict=False)]
        known = [(mean, label) for mean, label in means if mean]
        if known and max(known)[0] > min(known)[0] * (1 + EQUAL_COST):
            (least, cheap), (most, dear) = min(known), max(known)
            title = metric_info(name).title
            title = title if title == "FLOPs" else title.lower()
            found.append(f"not at equal {title}: {dear} took {most / least:.2f} times those of {cheap}")
    return found


def _metric_order() -> list[str]:
    names = metric_names()
    rest = [name for name in names if name not in HEADLINE_METRICS and name not in COST_METRICS]
    return [*HEADLINE_METRICS, *rest, *COST_METRICS]


def _tokenizer(history: RunHistory) -> str | None:
    return history.stages[-1].fingerprints.get("tokenizer") if history.stages else None


def _stream(history: RunHistory) -> tuple[str, ...]:
    return tuple(history.matrix.domains[column] for column in history.matrix.stage_domains)


def _seed(history: RunHistory) -> int:
    return int(history.recipe.get("seed", 0))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _order(value: float | None) -> float:
    return math.inf if value is None else value


def _differing(one: Any, other: Any, ignored: Sequence[str] = (), path: str = "") -> list[str]:
    """Dotted paths at which two recipes differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [key for key in dict.fromkeys([*one, *other]) if path or key not in ignored]
        return [
            found for key in keys for found in _differing(one.get(key), other.get(key), (), f"{path}.{key}".lstrip("."))
        ]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for i, pair in pairs for found in _differing(*pair, (), f"{path}.{i}")]
    return [] if one == other else [path]


def _at(recipe: Mapping[str, Any], path: str) -> Any:
    value: Any = recipe
    for key in path.split("."):
        here = dict(enumerate(value)) if isinstance(value, list) else value
        value = here.get(int(key) if isinstance(value, list) else key) if isinstance(here, Mapping) else None
    return value


def _text(value: Any) -> str:
    """As a recipe says it, on one line."""
    if value is None:
        return "off"
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf).removesuffix("...\n").strip()


def _short(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= 24 else text[:23] + "…"
