"""Replay memory: token blocks of earlier domains, bounded in tokens over the whole life of a run.

A generation is a complete folder, written once and never changed: `memory.json` and one Arrow file per
experience (one stage's share). Every block carries a priority, so that shrinking an old experience to make
room for a new one is keeping the beginning of its order: no policy has to see the old corpus again.
"""

from __future__ import annotations

import copy
import json
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lifelong.errors import CorruptionError, InputError
from lifelong.files import named_entry
from lifelong.replay.policies import POLICIES, priorities_of, quotas_of
from lifelong.stream.blocks import Block, BlockStore, StoredBlocks, write_blocks

_LARGEST_ID = (1 << 31) - 1


@dataclass(frozen=True)
class Experience:
    """Blocks that the memory keeps of one stage. `seen_*` is what the stage held, `priorities` ascend.

    Numbers below 0 are of public text that was put in before the stream.
    """

    stage: int
    domain: str
    file: str
    blocks: int
    tokens: int
    seen_blocks: int
    seen_tokens: int
    priorities: tuple[float, ...]


class ReplayMemory:
    """One generation of the memory, opened for reading; blocks are grouped by domain."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            facts = json.loads((self.path / "memory.json").read_text(encoding="utf-8"))
            self.capacity_tokens = int(facts["capacity_tokens"])
            self.policy = str(facts["policy"])
            self.experiences = tuple(
                Experience(**{**item, "priorities": tuple(item["priorities"])}) for item in facts["experiences"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptionError(f"{path}: no readable replay memory ({error})") from None
        self._stores = [BlockStore(named_entry(self.path, item.file)) for item in self.experiences]
        for item, store in zip(self.experiences, self._stores, strict=True):
            if len(store) != item.blocks:
                raise CorruptionError(f"{self.path / item.file}: {len(store)} blocks, memory.json says {item.blocks}")

    @classmethod
    def open(cls, path: Path) -> ReplayMemory:
        """The generation in a folder that `write_memory_snapshot` wrote."""
        return cls(path)

    @classmethod
    def joined(cls, parts: Sequence[ReplayMemory]) -> ReplayMemory:
        """Several memories as one."""
        whole = copy.copy(parts[0])
        whole.capacity_tokens = sum(part.capacity_tokens for part in parts)
        whole.experiences = tuple(item for part in parts for item in part.experiences)
        whole._stores = [store for part in parts for store in part._stores]
        return whole

    @property
    def domains(self) -> list[str]:
        """Names of the domains that have blocks here, in the order they were first met."""
        return list(dict.fromkeys(item.domain for item in self.experiences if item.blocks))

    @property
    def num_tokens(self) -> int:
        """Tokens of all blocks; never more than `capacity_tokens`."""
        return sum(item.tokens for item in self.experiences)

    def tokens_of(self, domain: str) -> int:
        """Tokens kept of one domain."""
        return sum(item.tokens for item in self.experiences if item.domain == domain)

    def seen_tokens_of(self, domain: str) -> int:
        """Tokens of the corpora that the kept blocks of this domain represent."""
        return sum(item.seen_tokens for item in self.experiences if item.domain == domain)

    def blocks(self, domain: str) -> DomainBlocks:
        """The blocks of one domain, as a sequence."""
        parts = [store for item, store in zip(self.experiences, self._stores, strict=True) if item.domain == domain]
        return DomainBlocks(parts)


class DomainBlocks(Sequence[Block]):
    """Several stores of one domain, one behind the other."""

    def __init__(self, parts: Sequence[BlockStore]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Block:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[part - 1]) if part else 0
        block: Block = self._parts[part][index - before]
        return block


def write_memory_snapshot(
    previous: Path | None,
    domain: str,
    blocks: StoredBlocks,
    *,
    capacity_tokens: int,
    policy: str,
    seed: int,
    out: Path,
    stage: int | None = None,
    scores: NDArray[np.floating] | None = None,
    most_tokens: int | None = None,
) -> ReplayMemory:
    """The memory after a stage: the older experiences shrunk, the new one drawn; a new complete folder.

    Args:
        previous: folder of the generation before, None for the first stage.
        domain: name of the domain of this stage.
        blocks: its training blocks.
        capacity_tokens: bound on the tokens of the whole memory.
        policy: reservoir, experience-balanced, domain-balanced, loss-ranked or diverse.
        seed: of the draw.
        out: the new folder, absent or empty. Where it is absent it appears complete or not at all.
        stage: number of the stage; a stage is drawn from once. The next one if absent.
        scores: one number per block of `blocks`, needed by loss-ranked: the highest are kept first.
        most_tokens: bound on the tokens of the new experience alone.

    Raises:
        InputError: the policy is unknown, lacks scores, or the stage is already in the memory.
    """
    older = ReplayMemory(previous) if previous is not None else None
    if stage is None:
        stage = 1 + max((item.stage for item in older.experiences), default=-1) if older else 0
    if older is not None and any(item.stage == stage for item in older.experiences):
        raise InputError(f"{previous}: the memory already holds stage {stage}")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty; a generation of the memory is written once")
    kept = list(older.experiences) if older else []
    limit = min(len(blocks), _most_blocks(blocks, capacity_tokens))
    order, priorities = priorities_of(policy, blocks, limit, seed=seed, stage=stage, scores=scores)
    if most_tokens is not None:
        order = order[: np.searchsorted(np.cumsum(blocks.lengths()[order]), most_tokens, side="right")]
        priorities = priorities[: len(order)]
    fresh = Experience(
        stage=stage,
        domain=domain,
        file=f"{stage:03d}-{domain}.arrow" if stage >= 0 else f"proxy-{domain}.arrow",
        blocks=len(order),
        tokens=0,
        seen_blocks=len(blocks),
        seen_tokens=blocks.num_tokens,
        priorities=tuple(float(value) for value in priorities),
    )
    everything = [*kept, fresh]
    lengths = [older._stores[i].lengths() for i in range(len(kept))] if older else []
    lengths.append(blocks.lengths()[order])
    counts = quotas_of(policy, [(item.domain, item.priorities) for item in everything], lengths, capacity_tokens)

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        records = []
        for number, (item, count) in enumerate(zip(everything, counts, strict=True)):
            source = older._stores[number] if older and number < len(kept) else blocks
            rows = range(count) if source is not blocks else order[:count]
            write_blocks(temporary / item.file, (source[int(row)] for row in rows), _LARGEST_ID)
            shrunk = {"blocks": count, "tokens": int(lengths[number][:count].sum())}
            records.append({**asdict(item), **shrunk, "priorities": list(item.priorities[:count])})
        facts = {"capacity_tokens": capacity_tokens, "policy": policy, "seed": seed, "experiences": records}
        (temporary / "memory.json").write_text(json.dumps(facts), encoding="utf-8")
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ReplayMemory(out)


def shrink_memory(source: Path, out: Path, capacity_tokens: int) -> None:
    """Write a memory again with the beginning of each experience alone, in equal parts."""
    memory = ReplayMemory.open(source)
    lengths = [store.lengths() for store in memory._stores]
    experiences = [(item.domain, item.priorities) for item in memory.experiences]
    counts = quotas_of("experience-balanced", experiences, lengths, capacity_tokens)
    records = []
    for item, store, count, tokens in zip(memory.experiences, memory._stores, counts, lengths, strict=True):
        write_blocks(out / item.file, (store[row] for row in range(count)), _LARGEST_ID)
        shrunk = {"blocks": count, "tokens": int(tokens[:count].sum()), "priorities": list(item.priorities[:count])}
        records.append({**asdict(item), **shrunk})
    facts = json.loads((source / "memory.json").read_text(encoding="utf-8"))
    facts |= {"capacity_tokens": capacity_tokens, "experiences": records}
    (out / "memory.json").write_text(json.dumps(facts), encoding="utf-8")


def _most_blocks(blocks: StoredBlocks, capacity_tokens: int) -> int:
    longest = int(blocks.lengths().max(initial=1))
    return capacity_tokens // longest + 1


__all__ = ["POLICIES", "DomainBlocks", "Experience", "ReplayMemory", "shrink_memory", "write_memory_snapshot"]
