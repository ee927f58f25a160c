"""History of a run: losses, curves and samples of every committed stage, arranged for a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lifelong.errors import CorruptionError, InputError
from lifelong.files import read_json, read_sealed, write_json
from lifelong.ledger.folder import RunFolder, StageFolder, stage_name
from lifelong.ledger.integrity import changed_recipe, damaged_files, recipe_finding
from lifelong.ledger.ledger import read_measurements, read_records, record_hash, with_measurements
from lifelong.records import (
    ChatScores,
    ComputeLedger,
    DomainLoss,
    ExpansionReport,
    FactCurve,
    FactPoint,
    Front,
    HarnessScores,
    LossMatrix,
    ProbePoint,
    RunHistory,
    Sample,
    StageRecord,
    TaskScores,
    TrainPoint,
)
from lifelong.schema import read_yaml

REPORTED = tuple(
    entry.name
    for entry in (
        StageFolder.losses,
        StageFolder.watched,
        StageFolder.losses_before,
        StageFolder.history,
        StageFolder.samples,
        StageFolder.chat,
    )
)


HISTORY = TypeAdapter(
    tuple[RunHistory, tuple[ComputeLedger, ...]], config=ConfigDict(strict=True, revalidate_instances="always")
)
# what the construction of a history from foreign values raises; what is well-formed JSON has any type
FORGED = (TypeError, ValueError, KeyError, IndexError, AttributeError)


def recipe_values(run: RunFolder) -> dict[str, Any]:
    """The plain values of a run's recipe; what they mean is known to `recipe/`.

    Raises:
        CorruptionError: the file is not what a run has written.
    """
    recipe = read_yaml(run.recipe).data
    stages = recipe.get("stages") if isinstance(recipe, dict) else None
    if not (
        isinstance(stages, list)
        and "name" in recipe
        and all(isinstance(stage, dict) and "domain" in stage for stage in stages)
    ):
        raise CorruptionError(f"{run.recipe}: is not the recipe of a run")
    return dict(recipe)


def read_history(out: Path) -> RunHistory:
    """Everything a report needs, from the committed stages alone.

    Raises:
        InputError: not a run folder, or nothing is committed yet.
        CorruptionError: a committed file is damaged, or is not what the ledger says it is.
    """
    run = RunFolder(out).require()
    records = read_records(out)
    if not records:
        raise InputError(f"{str(out)!r}: nothing is committed yet, so there is nothing to report")
    check_committed(out, records)
    try:
        history = _history(out, run, records)
        HISTORY.validate_python((history, tuple(ComputeLedger.from_json(record.cost) for record in history.stages)))
    except FORGED as error:
        raise CorruptionError(
            f"{out}: no run writes such values, though the hashes hold ({_reason(error)}); do not trust this folder"
        ) from error
    return history


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(error).__name__}: {str(error)[:150]}"


def _history(out: Path, run: RunFolder, records: Sequence[StageRecord]) -> RunHistory:
    recipe = recipe_values(run)
    facts = {record.name: read_measurements(out, record) for record in records if record.index >= 0}
    stages = tuple(with_measurements(record, facts[record.name]) for record in records if record.index >= 0)
    folders = [run.stage(record.name) for record in stages]
    lines = [(run.initial, records[0]), *zip(folders, stages, strict=True)]
    initial, *losses = _rows(run, lines, StageFolder.losses.name)
    watched = _rows(run, lines, StageFolder.watched.name)
    domains = tuple(dict.fromkeys(loss.domain for row in (initial, *losses) for loss in row))
    curves = [read_json(folder.history) for folder in folders]
    samples = [read_json(folder.samples) for folder in (run.initial, *folders)]
    waiting = tuple(
        stage_name(index, Path(str(section["domain"])).stem)
        for index, section in enumerate(recipe["stages"])
        if index >= len(stages)
    )
    return RunHistory(
        name=str(recipe["name"]),
        path=str(out),
        recipe=recipe,
        environment=read_sealed(run.environment),
        stages=stages,
        unfinished=waiting,
        matrix=loss_matrix(domains, stages, initial, losses, watched),
        initial_losses=initial,
        losses=tuple(losses),
        watched_losses=tuple(watched) if any(watched) else (),
        train=tuple(tuple(TrainPoint(**point) for point in curve["train"]) for curve in curves),
        probes=tuple(tuple(ProbePoint(**point) for point in curve["probes"]) for curve in curves),
        expansions=tuple(
            ExpansionReport.from_json(record.expansion) if record.expansion else None for record in stages
        ),
        samples=tuple(Sample(**sample) for group in samples for sample in group),
        head=record_hash(records[-1]),
        facts=fact_curve(curves),
        rejected=(waiting[0],) if waiting and run.was_rejected(len(stages)) else (),
        chat=tuple(
            ChatScores.from_json(read_json(folder.chat)) for folder in (run.initial, *folders) if folder.chat.is_file()
        ),
        sources={name: corpus for record in records for name, corpus in record.sources.items()},
        peak_memory={
            name: float(peak) for name, found in facts.items() if (peak := found["computed_with"].get("peak_memory"))
        },
        **read_afterwards(run, records),
    )


def _rows(run: RunFolder, lines: Sequence[tuple[StageFolder, StageRecord]], name: str) -> list[tuple[DomainLoss, ...]]:
    """Losses that each line of the ledger lists under a name, none where it lists no such file.

    A run that was extended: the model before a later stage was evaluated on the domains that joined with it, which
    completes the row before.
    """

    def listed(path: Path, record: StageRecord) -> tuple[DomainLoss, ...]:
        return read_losses(path) if run.name_of(path) in record.files else ()

    rows = [listed(folder.path / name, record) for folder, record in lines]
    known = {loss.domain for row in rows for loss in row}
    joined = [listed(folder.losses_before, record) for folder, record in lines[1:]]
    return [
        (*row, *(loss for loss in later if loss.domain in known and loss.domain not in {old.domain for old in row}))
        for row, later in zip(rows, [*joined, ()], strict=True)
    ]


def read_run(path: str | Path) -> RunHistory:
    """The history of a run folder: losses, curves, costs and samples of every committed stage; loads no model.

    Raises:
        InputError: not a run folder, or nothing is committed yet.
        CorruptionError: a committed file is damaged, or is not what the ledger says it is.
    """
    return read_history(Path(path))


def fact_curve(curves: Sequence[Mapping[str, Any]]) -> FactCurve | None:
    """Facts of all stages together; None in a run without any."""
    asked = [(stage, curve["facts"]) for stage, curve in enumerate(curves) if curve.get("facts")]
    if not asked:
        return None
    first, kept = asked[0]
    return FactCurve(
        texts=tuple(f"{fact['prompt']} {fact['target']}." for fact in kept["facts"]),
        stage=first,
        injected_at=tuple(kept["injected_at"]),
        points=tuple(
            tuple(FactPoint(**point) for point in (curve.get("facts") or {}).get("points", ())) for curve in curves
        ),
    )


def read_afterwards(run: RunFolder, records: Sequence[StageRecord]) -> dict[str, Any]:
    """Read what was measured on a run after it was committed; figures of other weights are left out and noted."""
    measured_later = any(folder.is_dir() for folder in (run.fronts, run.task_scores, run.harness_scores))
    lines = {record_hash(record) for record in records} if measured_later else set()
    notes = [f"{record.name}: {note}" for record in records for note in record.notes]

    def measured(folder: Path, kind: type[Front] | type[TaskScores] | type[HarnessScores]) -> list[Any]:
        found = []
        for path in sorted(folder.glob("*.json")):
            try:
                data = read_json(path)
                # an older version wrote these files without their hash
                item = kind.from_json(read_sealed(path) if "sha256" in data else data)
            except (CorruptionError, KeyError, TypeError, ValueError, AttributeError):
                notes.append(f"{run.name_of(path)} differs from what was written: left out")
                continue
            if item.record in lines:
                found.append(item)
            else:
                notes.append(f"{run.name_of(path)} was measured on other weights than those committed: left out")
        return found

    found = {
        "fronts": tuple(measured(run.fronts, Front)),
        "tasks": tuple(measured(run.task_scores, TaskScores)),
        "harness": tuple(measured(run.harness_scores, HarnessScores)),
    }
    return {**found, "notes": tuple(notes)}


def check_committed(out: Path, records: Sequence[StageRecord]) -> None:
    """Every file that a report reads against the hash in the ledger; weights are left to `lifelong check`.

    Raises:
        CorruptionError: names the file.
    """
    if copy := changed_recipe(out, records):
        raise CorruptionError(f"{out}: {recipe_finding(copy)}")
    for record in records:
        folder = f"{RunFolder('').stage(record.name).path.as_posix()}/"
        names = (*REPORTED, StageFolder.recipe.name) if record is records[-1] else REPORTED
        read = {f"{folder}{name}" for name in names}
        for finding in damaged_files(out, {name: record.files[name] for name in sorted(read & set(record.files))}):
            raise CorruptionError(
                f"{out}/{finding} (with {record.name}); "
                "restore it from a backup, `lifelong check` lists everything that was changed"
            )


def loss_matrix(
    domains: tuple[str, ...],
    stages: Sequence[StageRecord],
    initial: Sequence[DomainLoss],
    losses: Sequence[Sequence[DomainLoss]],
    watched: Sequence[Sequence[DomainLoss]] = (),
) -> LossMatrix:
    """Arrange held-out losses as R[t][k]; `watched` begins with row -1."""
    names = tuple(dict.fromkeys(loss.domain for row in watched for loss in row))

    def row(group: Sequence[DomainLoss], value: str, columns: tuple[str, ...] = domains) -> tuple[Any, ...]:
        by_domain = {loss.domain: getattr(loss, value) for loss in group}
        return tuple(by_domain.get(domain) for domain in columns)

    return LossMatrix(
        domains=domains,
        stages=tuple(record.name for record in stages),
        stage_domains=tuple(domains.index(record.domain) for record in stages),
        initial=row(initial, "nats_per_token"),
        nats_per_token=tuple(row(group, "nats_per_token") for group in losses),
        bits_per_byte=tuple(row(group, "bits_per_byte") for group in losses),
        tokens=tuple(row(group, "tokens_read") for group in losses),
        initial_bits_per_byte=row(initial, "bits_per_byte"),
        watched=names,
        watched_initial=row(watched[0], "nats_per_token", names) if names else (),
        watched_nats_per_token=tuple(row(group, "nats_per_token", names) for group in watched[1:]) if names else (),
    )


def write_losses(path: Path, losses: Sequence[DomainLoss]) -> None:
    """Held-out losses with their per-document sums."""
    write_json(
        path,
        [
            {
                "domain": loss.domain,
                "nats": loss.nats,
                "tokens": loss.tokens,
                "bytes": loss.bytes,
                "document_nats": list(loss.document_nats),
                "document_tokens": list(loss.document_tokens),
                "seconds": 0.0,
            }
            for loss in losses
        ],
    )


def read_losses(path: Path) -> tuple[DomainLoss, ...]:
    """Inverse of `write_losses`.

    Raises:
        CorruptionError: missing, unreadable, or sums of some documents without their tokens.
    """
    losses = tuple(
        DomainLoss(
            **{
                **item,
                "document_nats": tuple(item["document_nats"]),
                "document_tokens": tuple(item["document_tokens"]),
            }
        )
        for item in read_json(path)
    )
    for loss in losses:
        losses_of, tokens_of = len(loss.document_nats), len(loss.document_tokens)
        if losses_of != tokens_of:
            raise CorruptionError(f"{path}: {loss.domain}: losses of {losses_of} documents, tokens of {tokens_of}")
    return losses
