"""Uncertainty of figures: bootstrap over held-out documents, Student's t over seeds.

The documents of a domain are drawn with replacement, the same ones for every stage, and for every run that
was evaluated on the same documents; what documents have in common then cancels in differences. The interval
speaks about documents alone: another seed may move a figure further than that.

Shape suffixes: S resamples, N documents, R rows of the loss matrix (the initial model and one per stage).

Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile intervals).
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lifelong.metrics import compute_all
from lifelong.records import DomainLoss, LossMatrix, RunHistory

LEVEL = 0.95
RESAMPLES = 400
ROUNDING = 1e-12
ENTRIES_FOR_METRICS = 1_000  # a larger matrix gets intervals of its entries, not of its metrics: it must open fast

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A two-sided interval that holds the figure with probability `LEVEL`."""

    low: float
    high: float


def wilson_interval(passed: int, count: int) -> Interval:
    """Interval of a rate of `passed` out of `count` > 0.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    rate, spread = passed / count, z * z / count
    middle = rate + spread / 2
    half = z * math.sqrt(rate * (1 - rate) / count + spread / count / 4)
    return Interval((middle - half) / (1 + spread), (middle + half) / (1 + spread))


def documents_match(one: RunHistory, other: RunHistory) -> bool:
    """Whether two runs were evaluated on the same documents, as far as their lengths in tokens tell."""
    return document_tokens(one) == document_tokens(other)


def resampled_rows(history: RunHistory, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Floats]:
    """Domain -> nats per token of every row of the matrix on resampled documents, `[S, R]`.

    A row without that domain is NaN. Domains without per-document sums are left out.
    """
    rows = history.measured_losses
    found = {}
    for domain in dict.fromkeys((*history.matrix.domains, *history.matrix.watched)):
        by_row = [next((loss for loss in row if loss.domain == domain), None) for row in rows]
        tokens = document_tokens(history).get(domain, ())
        if not tokens or not sum(tokens):
            continue
        weights_SN = _draws(domain, len(tokens), resamples, seed)
        tokens_S = np.maximum(weights_SN @ np.asarray(tokens, dtype=np.float64), 1.0)
        columns: list[Floats] = []
        whole, on_whole = None, np.full(resamples, np.nan)  # the last row in which every document was read
        for loss in by_row:
            if loss is not None and whole is not None and 0 < len(loss.document_tokens) < len(tokens):
                columns.append(on_whole + _difference(loss, whole, weights_SN))
                continue
            columns.append(_sums(loss, tokens, weights_SN) / tokens_S)
            if loss is not None and loss.document_tokens == tokens:
                whole, on_whole = loss, columns[-1]
        found[domain] = np.stack(columns, axis=1)
    return found


def _difference(loss: DomainLoss, whole: DomainLoss, weights_SN: Floats) -> Floats:
    """What a row of fewer documents differs by from an earlier whole one, on those of them that were drawn, `[S]`."""
    count = len(loss.document_tokens)
    if loss.document_tokens != whole.document_tokens[:count]:
        return np.full(len(weights_SN), np.nan)
    drawn_SN = weights_SN[:, :count]
    nats = np.asarray(loss.document_nats) - np.asarray(whole.document_nats[:count])
    tokens_S = drawn_SN @ np.asarray(loss.document_tokens, dtype=np.float64)
    # where none of them was drawn, as it was measured
    measured = nats.sum() / max(sum(loss.document_tokens), 1)
    found: Floats = np.where(tokens_S > 0, drawn_SN @ nats / np.maximum(tokens_S, 1.0), measured)
    return found


def resampled_metrics(history: RunHistory, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, list[float | None]]:
    """Every metric of the matrix, once for each resample; empty where the matrix is too large or has no documents."""
    matrix = history.matrix
    if (len(matrix.stages) + 1) * len(matrix.domains) > ENTRIES_FOR_METRICS:
        return {}
    rows = resampled_rows(history, resamples, seed)
    if set(rows) != {*matrix.domains, *matrix.watched}:
        return {}
    bytes_per_token = _bytes_per_token(history)
    values: dict[str, list[float | None]] = {}
    for index in range(resamples):
        nats, watched = (
            [[_known(rows[name][index, t]) for name in names] for t in range(len(matrix.stages) + 1)]
            for names in (matrix.domains, matrix.watched)
        )
        bits = [
            [_bits(value, bytes_per_token.get(name)) for name, value in zip(matrix.domains, row, strict=True)]
            for row in nats
        ]
        drawn = LossMatrix(
            matrix.domains,
            matrix.stages,
            matrix.stage_domains,
            tuple(nats[0]),
            tuple(tuple(row) for row in nats[1:]),
            tuple(tuple(row) for row in bits[1:]),
            matrix.tokens,
            tuple(bits[0]),
            matrix.watched,
            tuple(watched[0]),
            tuple(tuple(row) for row in watched[1:]),
        )
        for name, value in compute_all(drawn).items():
            values.setdefault(name, []).append(value)
    return values


def metric_intervals(history: RunHistory, resamples: int = RESAMPLES) -> dict[str, Interval]:
    """Percentile interval over documents of every metric that the matrix alone defines."""
    drawn = resampled_metrics(history, resamples)
    return {name: found for name, values in drawn.items() if (found := percentile_interval(values)) is not None}


def entry_intervals(
    history: RunHistory, matrix: LossMatrix | None = None, resamples: int = RESAMPLES
) -> list[list[Interval | None]]:
    """Interval of every entry of the run's matrix, or of its watched one, in nats per token; row 0: the initial model."""
    rows = resampled_rows(history, resamples)
    matrix = matrix or history.matrix

    def entry(name: str, row: int) -> Interval | None:
        return percentile_interval([_known(value) for value in rows[name][:, row]]) if name in rows else None

    return [[entry(name, t) for name in matrix.domains] for t in range(len(matrix.stages) + 1)]


def loss_interval(loss: DomainLoss, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """Interval of one held-out loss in nats per token; None without per-document sums.

    Perplexity is its exponential and bits per byte a multiple of it: their intervals follow from this one.
    """
    if not loss.document_tokens or not sum(loss.document_tokens):
        return None
    weights_SN = _draws(loss.domain, len(loss.document_tokens), resamples, seed)
    tokens_S = np.maximum(weights_SN @ np.asarray(loss.document_tokens, dtype=np.float64), 1.0)
    return percentile_interval((_sums(loss, loss.document_tokens, weights_SN) / tokens_S).tolist())


def percentile_interval(values: Sequence[float | None]) -> Interval | None:
    """The middle `LEVEL` of the values; None without values, or where one is missing or not finite."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known or len(known) < len(values):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def bootstrap_p_value(differences: Sequence[float]) -> float:
    """Two-sided: twice the share of resampled differences on the far side of zero; never below `2 / (S + 1)`.

    Source: Davison & Hinkley 1997, Bootstrap Methods and their Application, section 4.4 (the added one).
    """
    below = sum(value <= 0 for value in differences)
    above = sum(value >= 0 for value in differences)
    return min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1))


def t_interval(values: Sequence[float]) -> Interval | None:
    """Student's interval of a mean over seeds; None for fewer than two."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    from scipy import stats

    mean = math.fsum(values) / len(values)
    room = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean - room, mean + room)


def t_test(one: Mapping[int, float], other: Mapping[int, float]) -> tuple[float, str] | None:
    """p-value of a difference of means over seeds and the name of the test; None where seeds are too few.

    Seeds that both sides share are paired; without two of them Welch's test compares the two sets. Values
    that do not vary at all give 1 where they are equal and 0 where they differ.
    """
    shared = sorted(set(one) & set(other))
    if len(shared) >= 2:
        pairs = np.array([one[seed] - other[seed] for seed in shared])
        return _t_p_value(float(pairs.mean()), float(pairs.var(ddof=1)) / len(pairs), len(pairs) - 1), (
            f"paired t, {len(shared)} seeds"
        )
    if min(len(one), len(other)) < 2:
        return None
    left, right = np.array(list(one.values())), np.array(list(other.values()))
    parts = [float(side.var(ddof=1)) / len(side) for side in (left, right)]
    weights = sum(part**2 / (len(side) - 1) for part, side in zip(parts, (left, right), strict=True))
    freedom = sum(parts) ** 2 / weights if weights else 1.0
    p_value = _t_p_value(float(left.mean() - right.mean()), sum(parts), freedom)
    return p_value, f"Welch's t, {len(left)} and {len(right)} seeds"


def _t_p_value(difference: float, squared_error: float, freedom: float) -> float:
    """Two-sided; a difference without any spread but rounding is certain."""
    from scipy import stats

    error = math.sqrt(squared_error)
    if error <= ROUNDING * abs(difference):
        return 0.0 if difference else 1.0
    return float(2 * stats.t.sf(abs(difference) / error, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for having made several comparisons.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def _draws(domain: str, num_documents: int, resamples: int, seed: int) -> Floats:
    """Number of times each document is drawn, `[S, N]`: a function of the domain, so that runs are paired."""
    key = int.from_bytes(hashlib.sha256(f"{seed} {domain}".encode()).digest()[:8], "big")
    generator = np.random.default_rng(key)
    return generator.multinomial(num_documents, np.full(num_documents, 1 / num_documents), size=resamples).astype(float)


def _sums(loss: DomainLoss | None, tokens: tuple[int, ...], weights_SN: Floats) -> Floats:
    if loss is None or loss.document_tokens != tokens or not all(map(math.isfinite, loss.document_nats)):
        return np.full(len(weights_SN), np.nan)
    sums: Floats = weights_SN @ np.asarray(loss.document_nats, dtype=np.float64)
    return sums


def document_tokens(history: RunHistory) -> dict[str, tuple[int, ...]]:
    """Domain -> predicted tokens of each held-out document; without domains that kept no such sums."""
    kept: dict[str, tuple[int, ...]] = {}
    for loss in (loss for row in history.measured_losses for loss in row if loss.document_tokens):
        if len(loss.document_tokens) > len(kept.get(loss.domain, ())):
            kept[loss.domain] = loss.document_tokens
    return kept


def _bytes_per_token(history: RunHistory) -> dict[str, float]:
    rows = history.measured_losses
    return {loss.domain: loss.bytes / loss.tokens for row in rows for loss in row if loss.tokens}


def _bits(nats: float | None, bytes_per_token: float | None) -> float | None:
    return None if nats is None or not bytes_per_token else nats / math.log(2) / bytes_per_token


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
