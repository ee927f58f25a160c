"""What a committed stage keeps beside its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lifelong.records import DomainLoss
from lifelong.train.phase import PhaseCurve


def loss_row(losses: Sequence[DomainLoss]) -> dict[str, dict[str, float]]:
    """A row of the loss matrix as the ledger keeps it."""
    return {
        loss.domain: {
            "nats_per_token": loss.nats_per_token,
            "bits_per_byte": loss.bits_per_byte,
            "tokens": loss.tokens,
        }
        for loss in losses
    }


def replay_counts(curves: Sequence[PhaseCurve]) -> dict[str, int]:
    """Replayed tokens by domain, over all phases of a stage."""
    counts: dict[str, int] = {}
    for curve in curves:
        for domain, tokens in curve.replayed.items():
            counts[domain] = counts.get(domain, 0) + tokens
    return counts


def unmapped_json(curves: Sequence[PhaseCurve]) -> dict[str, Any]:
    """What a stage keeps of teachers with other vocabularies: the share of their probability without a place."""
    mapped = [curve.mapped for curve in curves if curve.mapped]
    if not mapped:
        return {}
    shares = {name: {"tokens": rows, "share": mass / max(1, rows)} for name, (rows, mass) in mapped[-1].items()}
    return {"unmapped_mass": shares}


def unmapped_notes(curves: Sequence[PhaseCurve]) -> tuple[str, ...]:
    """The same for whoever reads the ledger, where there is any."""
    shares = unmapped_json(curves).get("unmapped_mass", {})
    return tuple(
        f"teacher {name}: {found['share']:.2%} of its probability is on tokens that the student's vocabulary lacks"
        for name, found in shares.items()
        if found["share"] > 0
    )
