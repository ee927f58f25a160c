"""Facts injected into a stage's text at chosen steps, so that their learning and forgetting can be watched.

The facts are invented: no corpus holds them, and what a model knows of them it has from these steps alone. A
row of new text makes room for a row of facts; replay and all other rows stay as they are.

Source: Chang et al. 2024, How do large language models acquire factual knowledge during pretraining?
(arXiv 2406.11813).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lifelong.errors import InputError
from lifelong.stream.blocks import Block
from lifelong.stream.ordering import key_of
from lifelong.stream.tokenizers.encoding import Encoder

SYLLABLES = (
    "ba", "de", "fo", "gu", "hi", "ka", "le", "mo", "nu", "pi", "ra", "se", "to", "vu", "zi", "cor", "dal", "fen",
    "gor", "hul", "jin", "mar", "nol", "per", "quil", "ros", "tam", "ver", "wol", "zan",
)  # fmt: skip
TEMPLATES = (
    "The capital of {place} is called",
    "The river that runs through {place} is the",
    "The founder of the academy in {place} was",
    "The only mountain of {place} is",
    "The language spoken in {place} is",
    "The queen who built the harbour of {place} was",
)


@dataclass(frozen=True)
class Fact:
    """A sentence cut in two: after `prompt` the model is asked for `target`."""

    prompt: str
    target: str

    @property
    def text(self) -> str:
        """The sentence as it is trained on."""
        return f"{self.prompt} {self.target}."


def invented_facts(count: int, seed: int) -> list[Fact]:
    """Facts about places that do not exist; the same ones for the same seed, no two about one place."""
    facts: list[Fact] = []
    places: set[str] = set()
    number = 0
    while len(facts) < count:
        place, target = (_name(seed, part, number) for part in ("place", "target"))
        if place not in places:
            places.add(place)
            facts.append(Fact(TEMPLATES[len(facts) % len(TEMPLATES)].format(place=place), target))
        number += 1
    return facts


def _name(seed: int, part: str, number: int) -> str:
    draws = [key_of(seed, "fact", part, number, syllable) % len(SYLLABLES) for syllable in range(3)]
    return "".join(SYLLABLES[draw] for draw in draws).capitalize()


def read_facts(path: Path) -> list[Fact]:
    """Facts of a JSON-lines file, `{"prompt": ..., "target": ...}` a line.

    Raises:
        InputError: the file or a line cannot be read; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"facts.file: {str(path)!r} cannot be read ({error})") from None
    facts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            fact = Fact(row["prompt"].strip(), row["target"].strip())
        except (ValueError, KeyError, TypeError, AttributeError):
            form = '{"prompt": "...", "target": "..."}'
            raise InputError(f"{path}:{number}: write {form}, not {line[:80]!r}") from None
        if not fact.prompt or not fact.target:
            raise InputError(f"{path}:{number}: prompt and target are both needed")
        facts.append(fact)
    if not facts:
        raise InputError(f"facts.file: {str(path)!r} holds no fact")
    return facts


def fact_blocks(facts: Sequence[Fact], tokenizer: Any, sequence_length: int, repeats: int) -> list[Block]:
    """Rows with every fact `repeats` times, a fact in one piece.

    Raises:
        InputError: a fact is longer than a row.
    """
    encoder = Encoder(tokenizer)
    blocks: list[Block] = []
    row: list[np.ndarray[Any, Any]] = []
    for ids in encoder.encode_all([fact.text for _ in range(repeats) for fact in facts]):
        if len(ids) > sequence_length:
            raise InputError(f"facts: one takes {len(ids)} tokens; a row holds sequence_length = {sequence_length}")
        if row and sum(map(len, row)) + len(ids) > sequence_length:
            blocks.append(_block(row))
            row = []
        row.append(ids)
    return [*blocks, _block(row)]


def _block(documents: Sequence[np.ndarray[Any, Any]]) -> Block:
    starts = np.cumsum([0, *(len(ids) for ids in documents[:-1])]).astype(np.int32)
    return Block(np.concatenate(documents).astype(np.int32), starts, np.zeros(len(documents), np.int32))


def injection_steps(times: Sequence[float], num_steps: int) -> list[int]:
    """The steps of some times, given as shares of the stage."""
    return sorted({min(num_steps - 1, round(time * num_steps)) for time in times})


class InjectedDataset:
    """A stage's rows with some new ones replaced, from given steps on; everything else is the inner dataset's.

    What does not fit the rows of new text of its step continues in the next one.

    Raises:
        InputError: the stage has too few rows of new text behind a step.
    """

    def __init__(self, inner: Any, rows: Mapping[int, Sequence[Block]]) -> None:
        self._inner = inner
        self._blocks: dict[int, Block] = {}
        for step, blocks in rows.items():
            free = (
                index
                for index in range(step * inner.blocks_per_step, len(inner))
                if index not in self._blocks and not inner[index]["is_replay"]
            )
            places = list(islice(free, len(blocks)))
            if len(places) < len(blocks):
                raise InputError(
                    f"facts: they fill {len(blocks)} rows, behind step {step} of {inner.num_steps} there are "
                    f"{len(places)} rows of new text; use fewer facts or repeats, or an earlier time in facts.at"
                )
            self._blocks.update(zip(places, blocks, strict=True))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not there yet while a copy is being made
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> Any:
        row = self._inner[index]
        return {**row, "block": self._blocks[index]} if index in self._blocks else row
