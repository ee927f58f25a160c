"""What all stages of a run share, and small facts about models that both a run and its plan need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lifelong.checkpoint import save_model
from lifelong.evaluate.perplexity import evaluate_domain
from lifelong.ledger import Ledger
from lifelong.recipe import Recipe
from lifelong.records import DomainLoss, RunObserver
from lifelong.stream.collator import Collator
from lifelong.stream.domain_collator import DomainCollator
from lifelong.stream.domain_tokenizers import MergedTokenizers
from lifelong.stream.heldout import Heldout
from lifelong.stream.tokenize import tokenizer_fingerprint
from lifelong.train.stage_trainer import PhaseCurve, StopRequest


@dataclass
class RunContext:
    """What all stages of a run share. `columns` are the domains of the loss matrix, in stream order."""

    recipe: Recipe
    ledger: Ledger
    columns: list[str]
    tokenizer: PreTrainedTokenizerBase
    versions: dict[str, str]
    observer: RunObserver = field(default_factory=RunObserver)
    stop: StopRequest = field(default_factory=StopRequest)
    merged: MergedTokenizers | None = None

    @property
    def out(self) -> Path:
        """The run folder."""
        return self.ledger.out

    def tokenizer_of(self, domain: str) -> PreTrainedTokenizerBase:
        """What reads the text of a domain: its own tokenizer where vocabularies were merged, else the run's."""
        return self.tokenizer if self.merged is None else self.merged.of(domain)

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Of everything that decides which ids a text of any domain gets."""
        return tokenizer_fingerprint(self.tokenizer) if self.merged is None else self.merged.fingerprint

    def save_model(self, model: PreTrainedModel, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """A plain checkpoint with all that reads text for it; `weights` where the model holds only a part of them."""
        save_model(model, self.tokenizer, folder, weights)
        if self.merged is not None:
            self.merged.save_domains(folder)

    @cached_property
    def heldouts(self) -> list[Heldout]:
        """Held-out documents of every domain, from the run folder."""
        return [Heldout.open(self.out / "heldout" / name) for name in self.columns]

    @property
    def mask_id(self) -> int | None:
        """Token that hides what a masked model must predict."""
        return self.tokenizer.mask_token_id if self.recipe.objective == "mlm" else None

    def collator(self, seed: int) -> Collator:
        """Packed rows to batches, with the masks of `seed`."""
        plain = Collator.for_tokenizer(self.tokenizer, self.recipe.objective, self.recipe.sequence_length, seed)
        return plain if self.merged is None else DomainCollator.of(plain, self.merged.domains, self.columns)

    def evaluate(self, model: PreTrainedModel) -> list[DomainLoss]:
        """Held-out loss of every domain, on the accelerator where there is one with room for the model."""
        if not self.recipe.train.get("use_cpu"):
            to_accelerator(model)
        return [self.evaluate_one(model, heldout) for heldout in self.heldouts]

    def evaluate_one(self, model: PreTrainedModel, heldout: Heldout, tokens: int | None = None) -> DomainLoss:
        """Held-out loss of one domain, on its first documents up to `tokens` where given."""
        return evaluate_domain(
            model,
            heldout if tokens is None else heldout.head(tokens),
            objective=self.recipe.objective,
            sequence_length=self.recipe.sequence_length,
            pad_id=pad_id(self.tokenizer),
            mask_id=self.mask_id,
        )


def to_accelerator(model: PreTrainedModel) -> None:
    """Move a model to the accelerator of this process, if it leaves half of what is free there for its activations."""
    import torch

    if torch.accelerator.is_available():
        free, _ = torch.accelerator.get_memory_info()
        if 2 * sum(value.numel() * value.element_size() for value in model.parameters()) < free:
            model.to(torch.accelerator.current_accelerator())


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token, or any other where there is none: padding is never attended to nor predicted."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)


def meta_model(config: Any, objective: str) -> PreTrainedModel:
    """The shapes of a model without its weights."""
    import torch
    import transformers

    auto = transformers.AutoModelForCausalLM if objective == "clm" else transformers.AutoModelForMaskedLM
    with torch.device("meta"):
        return auto.from_config(config)


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
