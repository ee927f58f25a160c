"""Weights over what every stage of a run has learned, chosen on held-out text.

Every stage's model, carried to the newest size by the maps of the growths after it, differs from the one before by a
delta. `base + sum of w_k delta_k` is the base with all weights 0 and the newest model with all weights 1; between and
beyond lie models that have learned some stages more and others less. Held-out losses are all that is needed to choose.

Source: Yao et al. 2026, OptiMer (arXiv 2603.28858), for models of one size; Powell 1994 (COBYLA) for the search.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lifelong.errors import InputError
from lifelong.evaluate.cards import EvaluationSettings, evaluate_heldouts, load_source, run_heldouts
from lifelong.evaluate.source import find_source
from lifelong.files import atomic_directory, write_json, write_sealed
from lifelong.ledger.folder import INITIAL, RunFolder
from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import committed_stages, record_hash
from lifelong.lineage.maps import carry_weights, maps_since
from lifelong.lineage.merge import check_new, weights_of
from lifelong.lm.checkpoint import as_stored, cast_weights, load_model, save_model, to_accelerator
from lifelong.records import LossMatrix
from lifelong.stream.tokenizers.load import copy_domain_tokenizers, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

LINE = (1.0, 0.75, 0.5, 0.25, 0.0)
"""All weights alike: from the newest model to the base."""
LARGEST = 1.5
STEP = 0.25


@dataclass(frozen=True)
class SearchPoint:
    """A merged model; nats per token.

    `learned`: mean fall of the stream's domains below the initial model. `forgotten`: mean rise of all measured domains
    above the best that each ever had in the run, none counted below 0. `mean`: mean loss of all measured domains.
    """

    weights: tuple[float, ...]
    losses: Mapping[str, float]
    learned: float
    forgotten: float

    @property
    def mean(self) -> float:
        """Mean loss of all measured domains: what the search makes small."""
        return sum(self.losses.values()) / len(self.losses)


@dataclass(frozen=True)
class MergeSearch:
    """Every model that was measured; `record` is the hash of the newest stage's line in the ledger."""

    stages: tuple[str, ...]
    split: str
    record: str
    points: tuple[SearchPoint, ...]

    @property
    def best(self) -> SearchPoint:
        """The smallest mean loss; of equals the one that was measured first."""
        return min(self.points, key=lambda point: point.mean)

    @property
    def newest(self) -> SearchPoint:
        """The run's own newest model."""
        return self.points[0]

    @property
    def front(self) -> list[SearchPoint]:
        """Points that no other beats in both: more learned, less forgotten; from the least learned to the most."""
        kept = [
            point
            for point in self.points
            if not any(
                other.learned >= point.learned
                and other.forgotten <= point.forgotten
                and (other.learned, other.forgotten) != (point.learned, point.forgotten)
                for other in self.points
            )
        ]
        return sorted(kept, key=lambda point: point.learned)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        points = [{**asdict(point), "mean": point.mean} for point in self.points]
        return {
            "stages": list(self.stages), "split": self.split, "record": self.record, "chosen": list(self.best.weights),
            "points": points, "front": [list(point.weights) for point in self.front],
        }  # fmt: skip


@dataclass(frozen=True)
class StageDeltas:
    """The base, every stage's delta and the newest weights, all at the newest size, by parameter name."""

    stages: tuple[str, ...]
    base: Mapping[str, Tensor]
    deltas: Sequence[Mapping[str, Tensor]]
    newest: Mapping[str, Tensor]

    def at(self, weights: Sequence[float]) -> dict[str, Tensor]:
        """The merged weights; both ends exactly, which sums of differences are not in floating point."""
        if all(weight == 1 for weight in weights):
            return dict(self.newest)
        merged = {name: value.clone() for name, value in self.base.items()}
        for weight, delta in zip(weights, self.deltas, strict=True):
            for name, value in delta.items() if weight else ():
                merged[name].add_(value, alpha=weight)
        return merged


def stage_deltas(run: Path, recipe: Mapping[str, Any]) -> StageDeltas:
    """The deltas of all stages; a run that began with random weights has its first stage as the base.

    Raises:
        InputError: no stage after the base, or the checkpoint is not the one that the run began from.
        CorruptionError: a map is damaged.
    """
    objective, records = str(recipe.get("objective", "clm")), committed_stages(run)
    folder, carried = RunFolder(run), []
    if recipe["model"].get("checkpoint") is not None:
        base = load_source(find_source(run, INITIAL), objective).cpu()
        carried.append(carry_weights(maps_since(run, INITIAL), weights_of(base)))
    for record in records:
        weights = weights_of(load_model(folder.model(record.name), objective))
        carried.append(carry_weights(maps_since(run, record.index), weights))
    if len(carried) < 2:
        raise InputError(
            f"merge --search: {str(run)!r} has one stage and began with random weights: there is no delta to weigh; "
            "extend it first"
        )
    deltas = [{name: after[name] - before[name] for name in after} for before, after in pairwise(carried)]
    names = tuple(record.name for record in records[-len(deltas) :])
    return StageDeltas(names, carried[0], deltas, carried[-1])


def search_merge(
    run: Path, recipe: Mapping[str, Any], out: Path | None = None, evaluations: int | None = None
) -> MergeSearch:
    """Choose weights over all stages on the run's held-out text; written to `RUN/front/search`, and the model to `out`.

    First the line from the newest model to the base, then COBYLA from the best point of it, within [0, 1.5].

    Args:
        run: the run folder.
        recipe: its recipe in plain values.
        out: a new folder for the chosen model, with `merge.json` beside it.
        evaluations: models to measure at most; 8 and 4 a stage where absent.

    Raises:
        InputError: too few evaluations, no delta, the checkpoint has changed, or `out` exists.
    """
    import torch

    if out is not None:
        check_new(out)
    parts, folder = stage_deltas(run, recipe), RunFolder(run)
    least = len(LINE) + len(parts.stages) + 2
    evaluations = 8 + 4 * len(parts.stages) if evaluations is None else evaluations
    if evaluations < least:
        raise InputError(
            f"merge --evaluations: {evaluations} are too few for {len(parts.stages)} stages; give at least {least}"
        )
    source, record = find_source(run), committed_stages(run)[-1]
    settings = EvaluationSettings.of(source, None, None, None, None)
    tokenizer, heldouts = load_tokenizer(source.tokenizer), list(run_heldouts(source).values())
    matrix = read_history(run).matrix
    model = load_model(folder.model(record.name), settings.objective)
    if not source.use_cpu:
        to_accelerator(model)
    parameters = dict(model.named_parameters(remove_duplicate=False))

    def put(weights: Sequence[float]) -> None:
        with torch.no_grad():
            for name, value in parts.at(weights).items():
                parameters[name].copy_(value)
        model.tie_weights()

    def measure(weights: tuple[float, ...]) -> SearchPoint:
        put(weights)
        losses = evaluate_heldouts(model, heldouts, tokenizer, settings)
        return search_point(weights, {loss.domain: loss.nats_per_token for loss in losses}, matrix)

    points = search_weights(measure, len(parts.stages), evaluations)
    search = MergeSearch(parts.stages, settings.split, record_hash(record), tuple(points))
    folder.search.mkdir(parents=True, exist_ok=True)
    write_sealed(folder.search / "search.json", search.to_json())
    if out is not None:
        put(search.best.weights)
        origin = {"run": recipe["name"], "stage": record.name, "record": search.record}
        weights = dict(zip(search.stages, search.best.weights, strict=True))
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with atomic_directory(out) as partial:
                save_model(as_stored(model, RunFolder(run).model(record.name)), tokenizer, partial)
                cast_weights(model, "float32")
                copy_domain_tokenizers(folder.model(record.name), partial)
                write_json(partial / "merge.json", {**origin, "weights": weights, "chosen_on": search.split})
        except OSError as error:
            raise InputError(f"{str(out)!r} cannot be written: {error.strerror}") from None
    return search


def search_weights(
    measure: Callable[[tuple[float, ...]], SearchPoint], stages: int, evaluations: int
) -> list[SearchPoint]:
    """Measured points in order, the newest model first; none is measured twice."""
    import numpy as np
    from scipy.optimize import minimize

    found: dict[tuple[float, ...], SearchPoint] = {}

    class EnoughError(Exception):
        """As many were measured as may be."""

    def mean(weights: Any) -> float:
        key = tuple(round(min(LARGEST, max(0.0, float(weight))), 3) for weight in weights)
        if key not in found:
            if len(found) == evaluations:
                raise EnoughError
            found[key] = measure(key)
        return found[key].mean

    for weight in LINE:
        mean((weight,) * stages)
    start = min(found.values(), key=lambda point: point.mean).weights
    with contextlib.suppress(EnoughError):
        minimize(
            mean, np.array(start), method="COBYLA", bounds=[(0.0, LARGEST)] * stages,
            options={"rhobeg": STEP, "tol": 0.01, "maxiter": 10 * evaluations},
        )  # fmt: skip
    return list(found.values())


def search_point(weights: tuple[float, ...], losses: Mapping[str, float], matrix: LossMatrix) -> SearchPoint:
    """Losses of a merged model beside those of the run."""
    falls, rises = [], []
    for domain, loss in losses.items():
        known = [value for value in matrix.series(domain) if value is not None]
        rises.append(max(0.0, loss - min(known)))
        if domain in matrix.domains:
            falls.append(known[0] - loss)
    return SearchPoint(weights, losses, sum(falls) / max(1, len(falls)), sum(rises) / max(1, len(rises)))
