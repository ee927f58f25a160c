from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong.errors import CorruptionError, InputError, UnknownNameError
from lifelong.replay.memory import ReplayMemory, write_memory_snapshot
from lifelong.replay.policies import POLICIES, fair_shares
from lifelong.stream.packing import BlockStore, pack, write_blocks

T = 8
CAPACITY = 40 * T


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[BlockStore]:
    folder = tmp_path_factory.mktemp("stores")
    sizes = (200, 100, 20, 300)
    return [
        write_blocks(folder / f"{i}.arrow", pack([np.arange(size * T + 3) + 100_000 * i], T), 1 << 20)
        for i, size in enumerate(sizes)
    ]


def _life(stores: list[BlockStore], folder: Path, policy: str, seed: int = 0) -> list[ReplayMemory]:
    names = ("wiki", "news", "wiki", "bio")
    generations: list[ReplayMemory] = []
    for stage, (name, store) in enumerate(zip(names, stores, strict=True)):
        previous = generations[-1].path if generations else None
        generations.append(
            write_memory_snapshot(
                previous,
                name,
                store,
                capacity_tokens=CAPACITY,
                policy=policy,
                seed=seed,
                out=folder / f"{stage:02d}",
                scores=np.arange(len(store), dtype=float) if policy == "loss-ranked" else None,
            )
        )
    return generations


def _ids(memory: ReplayMemory, domain: str) -> list[int]:
    blocks = memory.blocks(domain)
    return [int(blocks[i].ids[0]) for i in range(len(blocks))]


@pytest.mark.parametrize("policy", POLICIES)
def test_bound_holds_over_the_whole_life_and_old_blocks_are_old_ones(
    stores: list[BlockStore], tmp_path: Path, policy: str
) -> None:
    generations = _life(stores, tmp_path, policy)
    for memory in generations:
        # each stage may leave less than one block of its share unused
        assert CAPACITY - T * len(memory.experiences) < memory.num_tokens <= CAPACITY
        assert memory.num_tokens == sum(map(memory.tokens_of, memory.domains))
    for earlier, later in pairwise(generations):
        for experience in later.experiences[:-1]:
            old = {tuple(b.ids) for b in BlockStore(earlier.path / earlier.experiences[experience.stage].file)}
            new = [tuple(b.ids) for b in BlockStore(later.path / experience.file)]
            assert set(new) <= old
            assert len(set(new)) == len(new)
    assert generations[-1].seen_tokens_of("news") == stores[1].num_tokens


def test_divisions(stores: list[BlockStore], tmp_path: Path) -> None:
    by_stage = _life(stores, tmp_path / "a", "experience-balanced")[-1]
    assert [item.tokens for item in by_stage.experiences] == [10 * T] * 4
    by_domain = _life(stores, tmp_path / "b", "domain-balanced")[-1]
    shares = {name: by_domain.tokens_of(name) for name in by_domain.domains}
    assert set(shares) == {"wiki", "news", "bio"}
    assert max(shares.values()) - min(shares.values()) <= T


def test_reservoir_keeps_every_block_with_the_same_probability(stores: list[BlockStore], tmp_path: Path) -> None:
    kept = np.zeros(4)
    for seed in range(60):
        memory = _life(stores, tmp_path / str(seed), "reservoir", seed)[-1]
        kept += [item.blocks for item in memory.experiences]
    seen = np.array([len(store) for store in stores])
    assert kept / kept.sum() == pytest.approx(seen / seen.sum(), abs=0.03)


def test_loss_ranked_keeps_the_highest_scores(stores: list[BlockStore], tmp_path: Path) -> None:
    memory = _life(stores[:1] + stores[1:], tmp_path, "loss-ranked")[0]
    assert sorted(_ids(memory, "wiki")) == [i * T for i in range(160, 200)]
    with pytest.raises(InputError, match="one score for each of the 201 blocks, got 0"):
        write_memory_snapshot(
            None,
            "wiki",
            stores[0],
            capacity_tokens=CAPACITY,
            policy="loss-ranked",
            seed=0,
            out=tmp_path / "none",
        )
    assert not (tmp_path / "none").exists()


def test_diverse_covers_kinds_that_a_random_draw_misses(tmp_path: Path) -> None:
    common = [np.tile(np.arange(8), 1) + 8 * (i % 2) for i in range(300)]
    rare = [np.arange(8) + 1000 * (i + 1) for i in range(6)]
    documents = common[:150] + rare + common[150:]
    store = write_blocks(tmp_path / "b.arrow", pack(documents, 8), 1 << 20)
    settings = {"capacity_tokens": 10 * T, "seed": 0}
    diverse = write_memory_snapshot(None, "x", store, policy="diverse", out=tmp_path / "d", **settings)
    random = write_memory_snapshot(None, "x", store, policy="reservoir", out=tmp_path / "r", **settings)
    found = [sum(first >= 1000 for first in _ids(memory, "x")) for memory in (diverse, random)]
    assert found[0] >= 3 > found[1]


def test_same_seed_same_memory(stores: list[BlockStore], tmp_path: Path) -> None:
    first, again = (_life(stores, tmp_path / name, "domain-balanced") for name in "ab")
    for name in ("memory.json", first[-1].experiences[-1].file):
        assert (first[-1].path / name).read_bytes() == (again[-1].path / name).read_bytes()


def test_wrong_use_is_refused(stores: list[BlockStore], tmp_path: Path) -> None:
    settings = {"capacity_tokens": CAPACITY, "seed": 0}
    with pytest.raises(UnknownNameError, match="did you mean 'reservoir'"):
        write_memory_snapshot(None, "w", stores[0], policy="resevoir", out=tmp_path / "x", **settings)
    memory = write_memory_snapshot(None, "w", stores[0], policy="reservoir", out=tmp_path / "0", **settings)
    with pytest.raises(InputError, match="already holds stage 0"):
        write_memory_snapshot(memory.path, "w", stores[0], policy="reservoir", stage=0, out=tmp_path / "1", **settings)
    with pytest.raises(InputError, match="not empty"):
        write_memory_snapshot(None, "w", stores[0], policy="reservoir", out=tmp_path / "0", **settings)
    (tmp_path / "0" / "memory.json").write_text("{", encoding="utf-8")
    with pytest.raises(CorruptionError, match="no readable replay memory"):
        ReplayMemory.open(tmp_path / "0")


@given(st.lists(st.integers(0, 100), min_size=1, max_size=8), st.integers(0, 500))
def test_fair_shares(available: list[int], capacity: int) -> None:
    shares = fair_shares(available, capacity)
    assert all(share <= have for share, have in zip(shares, available, strict=True))
    assert sum(shares) == min(capacity, sum(available))
    unsatisfied = [share for share, have in zip(shares, available, strict=True) if share < have]
    assert max(unsatisfied, default=0) - min(unsatisfied, default=0) <= 1
