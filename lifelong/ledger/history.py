"""History of a run: losses, curves and samples of every committed stage, arranged for a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lifelong.errors import CorruptionError, InputError
from lifelong.files import file_hash, read_json, read_sealed, write_json
from lifelong.ledger.folder import RunFolder, StageFolder, stage_name
from lifelong.ledger.integrity import changed_recipe, recipe_finding
from lifelong.ledger.ledger import measured, read_records, record_hash
from lifelong.records import (
    ChatScores,
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

REPORTED = tuple(
    entry.name
    for entry in (
        StageFolder.losses,
        StageFolder.losses_before,
        StageFolder.history,
        StageFolder.samples,
        StageFolder.chat,
    )
)


def read_history(out: Path) -> RunHistory:
    """Everything a report needs, from the committed stages alone.

    Raises:
        InputError: not a run folder, or nothing is committed yet.
        CorruptionError: a committed file is damaged, or is not what the ledger says it is.
    """
    import yaml

    run = RunFolder(out).require()
    records = read_records(out)
    if not records:
        raise InputError(f"{str(out)!r}: nothing is committed yet, so there is nothing to report")
    check_committed(out, records)
    recipe = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    stages = tuple(measured(out, record) for record in records if record.index >= 0)
    folders = [run.stage(record.name) for record in stages]
    initial = read_losses(run.initial.losses)
    losses = tuple(read_losses(folder.losses) for folder in folders)
    # a run that was extended: the model before a later stage was evaluated on the domain that joined with it
    initial, *rows = [
        (*row, *(read_losses(folder.losses_before) if folder and folder.losses_before.is_file() else ()))
        for row, folder in zip((initial, *losses), [*folders, None], strict=True)
    ]
    losses = tuple(rows)
    domains = tuple(dict.fromkeys(loss.domain for row in (initial, *losses) for loss in row))
    curves = [read_json(folder.history) for folder in folders]
    samples = [read_json(folder.samples) for folder in (run.initial, *folders)]
    return RunHistory(
        name=recipe["name"],
        path=str(out),
        recipe=recipe,
        environment=read_sealed(run.environment),
        stages=stages,
        unfinished=tuple(
            stage_name(index, Path(section["domain"]).stem)
            for index, section in enumerate(recipe["stages"])
            if index >= len(stages)
        ),
        matrix=loss_matrix(domains, stages, initial, losses),
        initial_losses=initial,
        losses=losses,
        train=tuple(tuple(TrainPoint(**point) for point in curve["train"]) for curve in curves),
        probes=tuple(tuple(ProbePoint(**point) for point in curve["probes"]) for curve in curves),
        expansions=tuple(
            ExpansionReport.from_json(record.expansion) if record.expansion else None for record in stages
        ),
        samples=tuple(Sample(**sample) for group in samples for sample in group),
        head=record_hash(records[-1]),
        facts=fact_curve(curves),
        chat=tuple(
            ChatScores.from_json(read_json(folder.chat)) for folder in (run.initial, *folders) if folder.chat.is_file()
        ),
        **read_afterwards(run, records),
    )


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
    lines = {record_hash(record) for record in records}
    notes = [f"{record.name}: {note}" for record in records for note in record.notes]

    def measured(folder: Path, kind: type[Front] | type[TaskScores] | type[HarnessScores]) -> list[Any]:
        found = []
        for path in sorted(folder.glob("*.json")):
            item = kind.from_json(read_json(path))
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
        for name, digest in record.files.items():
            path = out / name
            if path.name in REPORTED and path.is_file() and file_hash(path) != digest:
                raise CorruptionError(
                    f"{path}: its content differs from what was committed with {record.name}; "
                    "restore it from a backup, `lifelong check` lists everything that was changed"
                )


def loss_matrix(
    domains: tuple[str, ...],
    stages: Sequence[StageRecord],
    initial: Sequence[DomainLoss],
    losses: Sequence[Sequence[DomainLoss]],
) -> LossMatrix:
    """Arrange held-out losses as R[t][k]."""

    def row(group: Sequence[DomainLoss], value: str) -> tuple[Any, ...]:
        by_domain = {loss.domain: getattr(loss, value) for loss in group}
        return tuple(by_domain.get(domain) for domain in domains)

    return LossMatrix(
        domains=domains,
        stages=tuple(record.name for record in stages),
        stage_domains=tuple(domains.index(record.domain) for record in stages),
        initial=row(initial, "nats_per_token"),
        nats_per_token=tuple(row(group, "nats_per_token") for group in losses),
        bits_per_byte=tuple(row(group, "bits_per_byte") for group in losses),
        tokens=tuple(row(group, "tokens") for group in losses),
        initial_bits_per_byte=row(initial, "bits_per_byte"),
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
    """Inverse of `write_losses`."""
    return tuple(
        DomainLoss(
            **{
                **item,
                "document_nats": tuple(item["document_nats"]),
                "document_tokens": tuple(item["document_tokens"]),
            }
        )
        for item in read_json(path)
    )
