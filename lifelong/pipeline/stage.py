"""One stage of a run: what its phases share.

Earlier domains are only met through the run folder: its memory and its held-out documents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lifelong import distributed
from lifelong.evaluate.facts.injection import Fact
from lifelong.evaluate.facts.stage import StageFacts, facts_of
from lifelong.files import read_json
from lifelong.ledger.folder import StageFolder, WorkFolder, stage_name
from lifelong.ledger.history import read_losses
from lifelong.lm.checkpoint import load_config, stored_dtype
from lifelong.lm.objective import pad_id
from lifelong.methods._grown_entries import GrownEntries
from lifelong.methods._make import make_methods
from lifelong.methods._method import Method, StageContext
from lifelong.methods._running_mean import StageAverage
from lifelong.pipeline.run import Run
from lifelong.recipe.recipe import Recipe, StageSection
from lifelong.records import DomainLoss, StageRecord
from lifelong.replay.memory import ReplayMemory
from lifelong.replay.steering import ReplayInputs
from lifelong.stream.cards.domain import Domain, load_domain
from lifelong.stream.steps import StagePlan, stage_plan
from lifelong.train.arguments import blocks_per_step, training_arguments
from lifelong.train.carried_moments import CarriedMoments


@dataclass
class Stage:
    """Stage `index` of a run.

    Args:
        context: what all stages of the run share.
        index: of the stage.
        section: of the recipe.
        domain: the stage's own.
    """

    context: Run
    index: int
    section: StageSection
    domain: Domain
    corpus: Any = None
    """Blocks that the stage trains on; there once it is prepared."""
    hooks: StageContext | None = None
    """What the methods may ask for; there once training has begun."""
    average: StageAverage | None = None
    """Mean of the last weights, where the released model is one; there while the stage is trained."""
    grown: GrownEntries | None = None
    """Rates of old and new entries, where they differ after a growth; there while the stage is trained."""
    moments: CarriedMoments | None = None
    """Adam's moments, where they are carried on; those of the newest training phase."""
    result: StageFolder | None = None
    """Folder of the newest training phase: what is evaluated and committed."""
    losses: list[DomainLoss] = field(default_factory=list)
    """Held-out losses of the trained model; there once it is evaluated."""

    def __post_init__(self) -> None:
        self.previous: StageRecord = self.context.ledger.records[-1]
        self.methods: list[Method] = make_methods([(m.name, m.settings()) for m in self.recipe.methods])

    @property
    def recipe(self) -> Recipe:
        """The run's."""
        return self.context.recipe

    @property
    def name(self) -> str:
        """`01-news`."""
        return stage_name(self.index, self.domain.name)

    @property
    def work(self) -> WorkFolder:
        """Folder that the stage's phases write."""
        return self.context.ledger.work(self.name)

    @property
    def seed(self) -> int:
        """Seed of the growth and the methods; each phase that trains has its own beside it."""
        return self.recipe.seed + 1_000 * (self.index + 1)

    @property
    def train_section(self) -> dict[str, Any]:
        """TrainingArguments of the recipe with those of the stage."""
        return {**self.recipe.train, **self.section.train}

    @property
    def has_learned(self) -> bool:
        """Whether the previous stage's model was trained, i.e. is not randomly initialised."""
        return self.index > 0 or self.recipe.model.checkpoint is not None

    @cached_property
    def released_dtype(self) -> torch.dtype | None:
        """Precision in which the model is written, where it is trained in float32 and its checkpoint came in less."""
        source = (
            self.recipe.model.checkpoint if self.index == 0 else self.context.ledger.folder.model(self.previous.name)
        )
        if source is None or self.recipe.model.dtype != "float32":
            return None
        config = load_config(source, self.recipe.model.revision if self.index == 0 else None)
        return torch.bfloat16 if stored_dtype(config) == "bfloat16" else None

    @property
    def domains(self) -> list[Domain]:
        """Its own domain, and those that it is trained on together with."""
        return [self.domain, *(load_domain(card) for card in self.section.cards[1:])]

    def has(self, path: Path) -> bool:
        """Whether an earlier call has reached this point; the same in all processes."""
        return distributed.run_on_main_process(path.exists)

    def plan(self, tokens: int) -> StagePlan:
        """Steps and blocks of a budget."""
        return stage_plan(tokens, self.recipe.sequence_length, self._blocks_per_step)

    @cached_property
    def _blocks_per_step(self) -> int:
        probe = training_arguments(self.train_section, output_dir=self.work.path, max_steps=1, seed=self.seed)
        return blocks_per_step(probe)

    @property
    def kept_memory(self) -> Path | None:
        """Memory of text: as the last committed stage left it, or with what stands in for text that nobody has."""
        if self.work.proxied.path.is_dir():
            return self.work.proxied.path
        folder = self.context.ledger.folder.memory_before(self.index)
        return folder if folder is not None and (folder / "memory.json").is_file() else None

    @property
    def generations(self) -> list[Path]:
        """What models have written, oldest first; with that of this stage once it is there."""
        if self.recipe.replay is None or self.recipe.replay.generate is None:
            return []
        own = self.work.generated.path
        return [*self.context.ledger.folder.generations_before(self.index), *([own] if own.is_dir() else [])]

    def memory(self) -> ReplayMemory | None:
        """What the stage may replay: text that was kept, and text that models have written."""
        if self.recipe.replay is None:
            return None
        kept = self.kept_memory
        parts = [ReplayMemory.open(folder) for folder in ([kept] if kept is not None else []) + self.generations]
        return ReplayMemory.joined(parts) if parts else None

    @property
    def columns(self) -> list[str]:
        """Names behind the `domain_ids` of a batch: domains of the matrix, then what else is in the memory."""
        memory = self.memory()
        return list(dict.fromkeys([*self.context.columns, *(memory.domains if memory is not None else ())]))

    @cached_property
    def earlier_losses(self) -> list[tuple[DomainLoss, ...]]:
        """Held-out losses after each committed stage, oldest first."""
        folder = self.context.ledger.folder
        return [read_losses(folder.stage(record.name).losses) for record in self.context.ledger.stages]

    @cached_property
    def reference_losses(self) -> list[tuple[DomainLoss, ...]]:
        """Every loss from which a budget may count, oldest first, those of watched domains included."""
        run, records = self.context.ledger.folder, self.context.ledger.records
        folders = [*(run.stage(record.name) for record in records), self.work]
        paths = [path for folder in folders for path in (folder.losses_before, folder.losses, folder.watched)]
        return [read_losses(path) for path in paths if path.is_file()]

    @cached_property
    def budgeted_domains(self) -> set[str]:
        """Domains that can have been forgotten: watched, learned earlier, or known to a pre-trained base."""
        learned = {record.domain for record in self.context.ledger.stages}
        base = self.context.columns if self.recipe.model.checkpoint is not None else ()
        return {*self.context.watched, *learned, *base}

    @property
    def replay(self) -> ReplayInputs | None:
        """Inputs of replay; None without a `replay:` section."""
        if self.recipe.replay is None:
            return None
        return ReplayInputs(
            section=self.recipe.replay,
            mix=self.recipe.replay_mix,
            budget=self.recipe.budget,
            losses=self.earlier_losses,
            references=self.reference_losses,
            heldouts={name: self.context.heldout(name) for name in self.steering_domains()},
            probe_tokens=self.recipe.evaluate.probe_tokens,
        )

    @cached_property
    def facts(self) -> StageFacts | None:
        """The facts of the stage; None before they are put in, and in a run without any."""
        section, context = self.recipe.facts, self.context
        if section is None or self.index < section.stage:
            return None
        if injects := self.index == section.stage:
            found, domain = facts_of(section, self.recipe.seed), self.domain.name
        else:
            first = context.ledger.stages[section.stage]
            kept = read_json(context.ledger.folder.stage(first.name).history).get("facts")
            if not kept:  # the recipe was given facts after that stage: they were never put in
                return None
            found, domain = [Fact(**fact) for fact in kept["facts"]], first.domain
        return StageFacts(
            section=section,
            facts=found,
            injects=injects,
            tokenizer=context.tokenizer_of(domain),
            objective=self.recipe.objective,
            sequence_length=self.recipe.sequence_length,
            pad_id=pad_id(context.tokenizer),
            mask_id=context.mask_id,
        )

    def seen_columns(self) -> list[int]:
        """Columns of the domains of earlier stages."""
        seen = {record.domain for record in self.context.ledger.stages}
        return [column for column, name in enumerate(self.context.columns) if name in seen]

    def steering_domains(self) -> list[str]:
        """Domains whose losses steer replay: those of earlier stages, and watched ones with a budget."""
        seen = [self.context.columns[column] for column in self.seen_columns()]
        return list(dict.fromkeys([*seen, *(name for name in self.context.watched if name in self.recipe.budget)]))

    def own_columns(self) -> list[int]:
        """Column of the stage's domain, if no earlier stage had it."""
        own = self.context.columns.index(self.domain.name)
        return [] if own in self.seen_columns() else [own]
