"""Disk space of a run: what stays, and what is temporary.

| what | bytes |
|---|---|
| model of a stage | 4 P; as much again where the next stage starts from a pre-decay checkpoint |
| resumable checkpoint | 4 P and the moments; `save_total_limit` of them and the one being written, of one stage |
| tokenised corpus | 2 or 4 bytes a token by the size of the vocabulary, and 8 a document; of a large one what is read |
| replay memory | 4 bytes a token; two generations while a stage is committed |
| self-generated text | 28 bytes a token with its targets; twice where what every model wrote is kept |
| held-out text | 4 bytes per token, and the text itself |
| teacher cache | as it is on disk |
| carried moments | 8 P; of two stages while the second is committed |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifelong.plan.text import CorpusStats
from lifelong.recipe.recipe import Recipe

ID_BYTES, SMALL_ID_BYTES, SEGMENT_BYTES = 4, 2, 8
SMALL_VOCABULARY = 1 << 16
BLOCK_BYTES = 12
"""Ends of the three lists of a block in its Arrow file."""
PRIORITY_BYTES = 20
"""A block's priority in the memory's JSON."""
FILE_BYTES = 1_300
"""Schema and footer of an Arrow file."""
HELDOUT_DOCUMENT_BYTES = 56
"""A held-out document's key, length and ends."""
TARGET_BYTES = 24
"""Sparse targets of a token by the tau-sampler."""
USUAL_BYTES_PER_TOKEN = 4.0
"""Where the text cannot be looked at."""


@dataclass(frozen=True)
class DiskPlan:
    """Bytes of a whole run. `resumable` and half of `memory` are there for a time only; the total holds all."""

    models: int
    trunks: int
    resumable: int
    tokenised: int
    memory: int
    heldout: int
    teacher_cache: int
    carried_moments: int = 0

    @property
    def total(self) -> int:
        """The most that is needed at a time."""
        return sum(asdict(self).values())

    def to_json(self) -> dict[str, Any]:
        """Parts and total."""
        return {**asdict(self), "total": self.total}


@dataclass(frozen=True)
class StageFiles:
    """Bytes of a stage's model, the trunk beside it, a resumable checkpoint, how many are kept, and carried moments."""

    model: int
    trunk: int
    checkpoint: int
    checkpoints: int
    moments: int = 0


def disk_plan(
    recipe: Recipe, files: Sequence[StageFiles], texts: Mapping[str, CorpusStats], vocab_size: int
) -> DiskPlan:
    """Disk of a run.

    Args:
        recipe: of the run.
        files: of every stage.
        texts: what was found about the text of each domain, by name; domains that could not be read are missing.
        vocab_size: tokens of the tokenizer.
    """
    names = list(dict.fromkeys(stage.domain for stage in recipe.stages))
    cards = list(dict.fromkeys(card for stage in recipe.stages for card in stage.cards))
    wide = SMALL_ID_BYTES if vocab_size <= SMALL_VOCABULARY else ID_BYTES
    wanted = {card: tokens for stage in recipe.stages for card, tokens in stage.tokens_by_card().items()}
    tokenised = 0.0
    tokens_of: dict[str, float] = {}
    for card in cards:
        facts = texts.get(card)
        tokens = facts.read_tokens if facts is not None else None
        documents = facts.documents * facts.read_bytes / max(1.0, facts.text_bytes) if facts is not None else None
        tokens_of[card] = float(wanted.get(card, 0)) if tokens is None else tokens
        tokenised += tokens_of[card] * wide + SEGMENT_BYTES * (documents or 0)
        tokenised += BLOCK_BYTES * tokens_of[card] / recipe.sequence_length + FILE_BYTES
    heldout = sum(_heldout_bytes(recipe, texts.get(card)) for card in names)
    memory = 0.0
    if recipe.replay is not None and recipe.replay.memory_tokens:
        kept = min(recipe.replay.memory_tokens, sum(tokens_of[card] for card in names))
        block = ID_BYTES * recipe.sequence_length + BLOCK_BYTES + SEGMENT_BYTES + PRIORITY_BYTES
        memory = 2 * kept / recipe.sequence_length * block
    if recipe.replay is not None and (section := recipe.replay.generate) is not None:
        memory += section.tokens * (ID_BYTES + TARGET_BYTES) * (2 if section.keeps_all else 1)
    caches = set(recipe.inherit.teacher.caches()) if recipe.inherit else set()
    return DiskPlan(
        models=sum(stage.model for stage in files),
        trunks=sum(stage.trunk for stage in files),
        resumable=max(stage.checkpoint * stage.checkpoints for stage in files),
        tokenised=int(tokenised),
        memory=int(memory),
        heldout=int(heldout),
        teacher_cache=sum(folder_bytes(Path(cache)) for cache in caches),
        carried_moments=sum(sorted(stage.moments for stage in files)[-2:]),
    )


def _heldout_bytes(recipe: Recipe, facts: CorpusStats | None) -> float:
    """Bytes of held-out text of one domain: whole documents until there are enough tokens."""
    held = float(recipe.evaluation_tokens)
    per_token, documents = USUAL_BYTES_PER_TOKEN, 0.0
    if facts is not None and facts.tokens and facts.bytes_per_token:
        per_token, length = facts.bytes_per_token, facts.tokens / max(1.0, facts.documents)
        held = min(held + length / 2, facts.heldout_tokens or held)
        documents = held / length
    return held * (ID_BYTES + per_token) + HELDOUT_DOCUMENT_BYTES * documents + FILE_BYTES


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where it is not there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
