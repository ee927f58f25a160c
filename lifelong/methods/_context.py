"""Connects the `methods:` section of a recipe to the hooks of a stage: their inputs, and the state they leave."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from lifelong.errors import refusals
from lifelong.expand import ExpansionMap
from lifelong.files import read_json
from lifelong.lm.head import loss_head
from lifelong.methods._make import check_method, make_methods
from lifelong.methods._method import Batch, Method, StageContext
from lifelong.methods._settings import MethodSection
from lifelong.replay.memory import ReplayMemory
from lifelong.stream.blocks import Block
from lifelong.stream.collator import Collator, PackedRow
from lifelong.stream.joint import domain_of
from lifelong.stream.ordering import key_of, permuted


def check_methods(
    methods: Sequence[MethodSection], train: Mapping[str, Any], *, has_memory: bool, keeps_pre_decay: bool, here: bool
) -> Iterator[str]:
    """A line for every method that is unknown, has a wrong setting or cannot be right in a run.

    Args:
        methods: of the recipe.
        train: TrainingArguments of the recipe.
        has_memory: earlier text is kept.
        keeps_pre_decay: the learning rate keeps whole weights in the middle of a stage.
        here: the run is to be on this machine.

    Raises:
        InputError: methods that cannot go together.
    """
    sections: list[tuple[str, Mapping[str, Any]]] = [(method.name, method.settings()) for method in methods]
    for section in sections:
        limits = {"memory": has_memory, "sharded": uses_sharding(train), "keeps_pre_decay": keeps_pre_decay}
        yield from refusals(_check_alone, section, **limits)
    for method in make_methods(sections) if here else ():
        yield from method.check_here()


def _check_alone(section: tuple[str, Mapping[str, Any]], **run: bool) -> None:
    for method in make_methods([section]):
        check_method(method, section[0], **run)


def uses_sharding(train: Mapping[str, Any]) -> bool:
    """Whether a device will hold a part of each parameter only, by the recipe or by `accelerate launch`."""
    launched = any(os.environ.get(f"ACCELERATE_USE_{kind}") == "true" for kind in ("FSDP", "DEEPSPEED"))
    return launched or bool(train.get("fsdp") or train.get("deepspeed"))


@dataclass(frozen=True)
class MemoryRows:
    """Batches of the replay memory, each a pure function of the draw."""

    memory: ReplayMemory
    collator: Collator
    columns: Sequence[str]
    seed: int

    @property
    def domains(self) -> Sequence[str]:
        """Earlier domains that have something in the memory."""
        return self.memory.domains

    def batch(self, size: int, draw: int, domain: str | None = None) -> Batch:
        """`size` rows of one domain, or of all of them in turn; every row comes once before one comes again."""
        names = [domain] if domain is not None else self.domains
        rows = []
        for place in range(draw * size, (draw + 1) * size):
            name = names[place % len(names)]
            blocks = self.memory.blocks(name)
            epoch, index = divmod(place // len(names), len(blocks))
            row = permuted(index, len(blocks), key_of(self.seed, "memory of a method", name, epoch))
            key = key_of(self.seed, "mask of a method", name, epoch, row)
            rows.append(_row(blocks[row], self.columns.index(name), key, is_replay=True))
        return self.collator(rows)


def stage_context(
    *,
    index: int,
    domain: str,
    columns: Sequence[str],
    model: PreTrainedModel,
    has_learned: bool,
    corpus: Any,
    memory: ReplayMemory | None,
    collator: Collator,
    expansion: Path,
    seed: int,
) -> StageContext:
    """Everything that the hooks may ask for.

    Args:
        index: of the stage.
        domain: its domain.
        columns: domains of the loss matrix.
        model: as training begins.
        has_learned: it knows something from before.
        corpus: blocks of the domain.
        memory: of earlier stages.
        collator: with the masks of the stage.
        expansion: file of the growth's map, which is there if the stage has grown.
        seed: of the stage.
    """

    def own_batches(count: int) -> Iterator[Batch]:
        for place in range(count):
            epoch, turn = divmod(place, len(corpus))
            row = permuted(turn, len(corpus), key_of(seed, "rows of a method", epoch))
            key = key_of(seed, "mask of a method", epoch, row)
            owner = domain_of(corpus, row, domain)
            column = columns.index(owner if owner in columns else domain)
            yield _on(model, collator([_row(corpus[row], column, key)]))

    def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        with loss_head(model, collator.objective):
            value: Tensor = model(**_on(model, batch)).loss
        return value

    return StageContext(
        stage_index=index,
        domain=domain,
        model=model,
        seed=seed,
        objective=collator.objective,
        has_learned=has_learned,
        columns=columns,
        mapping=ExpansionMap.from_json(read_json(expansion)["map"]) if expansion.exists() else None,
        sequence_length=collator.sequence_length,
        memory=None if memory is None else MemoryRows(memory, collator, columns, seed),
        own_batches=own_batches,
        loss=loss,
    )


def _row(block: Block, column: int, mask_key: int, *, is_replay: bool = False) -> PackedRow:
    return PackedRow(block=block, domain_id=column, is_replay=is_replay, mask_key=mask_key)


def _on(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    return {name: value.to(model.device) for name, value in batch.items()}


def write_exports(methods: Sequence[Method], folder: Path) -> None:
    """Lay the files of the methods beside the stage's model."""
    for method in methods:
        method.write_files(folder)
        for name, tensors in method.exports().items():
            save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, folder / name)


def method_tokens(path: Path) -> float:
    """Tokens that methods alone passed forward and backward in a stage, from its `methods.safetensors`."""
    if not path.is_file():
        return 0.0
    return sum(float(value) for name, value in load_file(path).items() if name.endswith(".extra_tokens"))
