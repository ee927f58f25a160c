"""Commit of a stage: the files it keeps beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lifelong.expand import model_shape
from lifelong.files import json_fingerprint, read_json, write_json
from lifelong.ledger.folder import StageFolder
from lifelong.lm.checkpoint import weights_fingerprint
from lifelong.lm.flops import num_parameters
from lifelong.pipeline.environment import computed_with
from lifelong.pipeline.phases import PHASES
from lifelong.pipeline.phases.remember import memory_folder
from lifelong.pipeline.stage import Stage
from lifelong.records import ComputeLedger, DomainLoss, ExpansionReport, StageRecord
from lifelong.stream.joint import JointBlocks
from lifelong.train.phase import PhaseLog


def commit_stage(stage: Stage, model: PreTrainedModel) -> StageRecord:
    """Complete the folder of the stage's result and append it to the ledger; the main process calls."""
    context, folder = stage.context, stage.result
    assert folder is not None, "committed after training"
    curves = [curve for phase in PHASES if (curve := phase.curve(stage)) is not None]
    asked = next((curve for curve in curves if curve.facts), curves[-1])
    history = {
        "train": [asdict(point) for curve in curves for point in curve.train],
        "probes": [asdict(point) for curve in curves for point in curve.probes],
        "facts": None if stage.facts is None else stage.facts.to_json(asked.facts, asked.tokens),
        **unmapped_json(curves),
        **shares_json(stage),
    }
    write_json(folder.history, history)
    cost = ComputeLedger()
    for phase in PHASES:
        phase.keep(stage, folder)
        for label, part in phase.cost(stage, model):
            cost = cost.adding(label, part)
    record = StageRecord(
        index=stage.index,
        name=stage.name,
        domain=stage.domain.name,
        parent="",
        recipe_hash=stage.recipe.fingerprint,
        tokens=sum(curve.tokens for curve in curves),
        shape=model_shape(model.config),
        parameters=num_parameters(model),
        cost=cost.to_json(),
        row=loss_row(context.row(stage.losses)),
        fingerprints={
            "corpus": stage.corpus.fingerprint,
            "tokenizer": context.tokenizer_fingerprint,
            "model": weights_fingerprint(model),
        },
        seeds={"stage": stage.seed},
        **{key: value for phase in PHASES for key, value in phase.facts(stage).items()},
        versions=context.versions,
        files={},
        expansion=_expansion(folder),
        replay=replay_counts(curves),
        notes=(*unmapped_notes(curves), *precision_notes(model, stage.released_dtype)),
        committed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        sources={domain.name: domain.provenance for domain in stage.domains},
    )
    memory = memory_folder(stage)
    extra = [*([] if memory is None else [memory]), *_new_heldouts(stage)]
    return context.ledger.commit(folder.path, record, extra, computed_with())


def _expansion(folder: StageFolder) -> dict[str, Any] | None:
    """Ledger entry of a growth: its report, and the hash of its map."""
    if not folder.expansion.exists():
        return None
    written = read_json(folder.expansion)
    report = ExpansionReport.from_json({"seconds": 0.0, **written})
    return {**report.to_json(), "map": json_fingerprint(written["map"])}


def _new_heldouts(stage: Stage) -> list[Path]:
    """Held-out folders that no earlier record lists: those of a domain that joined with this stage."""
    run, records = stage.context.ledger.folder, stage.context.ledger.records
    listed = {(run.path / name).parent for record in records for name in record.files}
    return [folder for name in stage.context.measured if (folder := run.heldout(name)) not in listed]


def loss_row(losses: Sequence[DomainLoss]) -> dict[str, dict[str, float]]:
    """A row of the loss matrix as the ledger keeps it."""
    return {
        loss.domain: {
            "nats_per_token": loss.nats_per_token,
            "bits_per_byte": loss.bits_per_byte,
            "tokens": loss.tokens_read,
        }
        for loss in losses
    }


def replay_counts(curves: Sequence[PhaseLog]) -> dict[str, int]:
    """Replayed tokens by domain, over all phases of a stage."""
    counts: dict[str, int] = {}
    for curve in curves:
        for domain, tokens in curve.replayed.items():
            counts[domain] = counts.get(domain, 0) + tokens
    return counts


def shares_json(stage: Stage) -> dict[str, Any]:
    """Tokens by domain of a stage of several domains by shares, rows counted as full."""
    if not isinstance(stage.corpus, JointBlocks) or stage.corpus.shares is None:
        return {}
    plan = stage.plan(stage.section.tokens)
    rows = stage.corpus.rows_of(plan.num_steps * plan.blocks_per_step)
    return {"tokens_by_domain": {name: count * stage.recipe.sequence_length for name, count in rows.items()}}


def precision_notes(model: PreTrainedModel, released: torch.dtype | None = None) -> tuple[str, ...]:
    """Precision of what was evaluated, where it is not float32 throughout."""
    if model.dtype == torch.bfloat16:
        return ("weights are held and evaluated in bfloat16",)
    if released == torch.bfloat16:
        return ("trained in float32; the model is written, and evaluated, as bfloat16 rounds it; trunk/ holds float32",)
    return ()


def unmapped_json(curves: Sequence[PhaseLog]) -> dict[str, Any]:
    """Record of teachers with other vocabularies: the share of their probability without a place."""
    mapped = [curve.mapped for curve in curves if curve.mapped]
    if not mapped:
        return {}
    shares = {name: {"tokens": rows, "share": mass / max(1, rows)} for name, (rows, mass) in mapped[-1].items()}
    return {"unmapped_mass": shares}


def unmapped_notes(curves: Sequence[PhaseLog]) -> tuple[str, ...]:
    """The same for whoever reads the ledger, where there is any."""
    shares = unmapped_json(curves).get("unmapped_mass", {})
    return tuple(
        f"teacher {name}: {found['share']:.2%} of its probability is on tokens that the student's vocabulary lacks"
        for name, found in shares.items()
        if found["share"] > 0
    )
