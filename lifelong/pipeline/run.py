"""Shared inputs of all stages of a run, and small facts about models that both a run and its plan need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lifelong.evaluate.perplexity import estimated_loss, evaluate_domain
from lifelong.ledger.folder import StageFolder
from lifelong.ledger.history import write_losses
from lifelong.ledger.ledger import Ledger
from lifelong.lm.checkpoint import save_model, to_accelerator
from lifelong.lm.objective import objective_of, pad_id
from lifelong.recipe.recipe import Recipe
from lifelong.records import DomainLoss, RunObserver
from lifelong.stream.collator import Collator
from lifelong.stream.heldout import Heldout
from lifelong.stream.tokenizers.collator import DomainCollator
from lifelong.stream.tokenizers.load import tokenizer_fingerprint
from lifelong.stream.tokenizers.merged import MergedTokenizers
from lifelong.train.phase import StopRequest


@dataclass
class Run:
    """What all stages of a run share.

    `columns` are the domains of the loss matrix, in stream order; `watched` are measured beside them and never trained
    on. A domain may be both.
    """

    recipe: Recipe
    ledger: Ledger
    columns: list[str]
    tokenizer: PreTrainedTokenizerBase
    versions: dict[str, str]
    observer: RunObserver = field(default_factory=RunObserver)
    stop: StopRequest = field(default_factory=StopRequest)
    merged: MergedTokenizers | None = None
    watched: list[str] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """The run folder."""
        return self.ledger.out

    def tokenizer_of(self, domain: str) -> PreTrainedTokenizerBase:
        """Tokenizer of a domain: its own tokenizer where vocabularies were merged, else the run's."""
        return self.tokenizer if self.merged is None else self.merged.of(domain)

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Fingerprint of everything that decides which ids a text of any domain gets."""
        return tokenizer_fingerprint(self.tokenizer) if self.merged is None else self.merged.fingerprint

    @property
    def is_chat(self) -> bool:
        """Whether the base has a chat template, so that chat prompts are answered before and after every stage."""
        return self.recipe.chat_checkpoint is not None and bool(self.tokenizer.chat_template)

    def save_model(self, model: PreTrainedModel, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """A plain checkpoint with all that reads text for it; `weights` where the model holds only a part of them."""
        save_model(model, self.tokenizer, folder, weights)
        if self.merged is not None:
            self.merged.save_domains(folder)

    @cached_property
    def heldouts(self) -> list[Heldout]:
        """Held-out documents of every domain, from the run folder."""
        return [self.heldout(name) for name in self.columns]

    def heldout(self, name: str) -> Heldout:
        """Held-out documents of a domain of the stream, or of a watched one."""
        return Heldout.open(self.ledger.folder.heldout(name))

    @property
    def measured(self) -> list[str]:
        """Every domain that is evaluated: those of the stream, then the others that are watched."""
        return list(dict.fromkeys([*self.columns, *self.watched]))

    @property
    def mask_id(self) -> int | None:
        """Token that hides what a masked model must predict."""
        return objective_of(self.recipe.objective).mask_id(self.tokenizer)

    def collator(self, seed: int) -> Collator:
        """Packed rows to batches, with the masks of `seed`."""
        plain = Collator.for_tokenizer(self.tokenizer, self.recipe.objective, self.recipe.sequence_length, seed)
        return plain if self.merged is None else DomainCollator.of(plain, self.merged.domains, self.columns)

    def evaluate(
        self, model: PreTrainedModel, read_before: Callable[[Heldout], tuple[int, DomainLoss] | None] = lambda _: None
    ) -> list[DomainLoss]:
        """Held-out loss of every measured domain, on the accelerator where there is one with room for the model.

        Args:
            model: that is measured.
            read_before: of a domain that is not to be read whole: how many documents are read, and its last whole
                reading.
        """
        if not self.recipe.train.get("use_cpu"):
            to_accelerator(model)
        losses = []
        for heldout in map(self.heldout, self.measured):
            shortened = read_before(heldout)
            found = shortened and estimated_loss(
                self.evaluate_one(model, heldout.first(shortened[0])), whole=shortened[1]
            )
            losses.append(found or self.evaluate_one(model, heldout))
        return losses

    def write_losses(self, folder: StageFolder, losses: Sequence[DomainLoss]) -> None:
        """Keep what `evaluate` gave: a row of the loss matrix, and one of the watched domains where there are any."""
        if self.watched:
            write_losses(folder.watched, [loss for loss in losses if loss.domain in self.watched])
        write_losses(folder.losses, self.row(losses))  # last: it says that all was evaluated

    def row(self, losses: Sequence[DomainLoss]) -> list[DomainLoss]:
        """Those of the domains of the loss matrix."""
        return [loss for loss in losses if loss.domain in self.columns]

    def evaluate_one(self, model: PreTrainedModel, heldout: Heldout, tokens: int | None = None) -> DomainLoss:
        """Held-out loss of one domain, on its first documents up to `tokens` where given."""
        return evaluate_domain(
            model,
            heldout if tokens is None else heldout.head(tokens),
            objective=self.recipe.objective,
            sequence_length=self.recipe.sequence_length,
            pad_id=pad_id(self.tokenizer),
            mask_id=self.mask_id,
            autocast=self.recipe.evaluation_autocast,
        )
