"""Our blocks in Avalanche's hands; slow because importing Avalanche is."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifelong.ledger.folder import RunFolder
from lifelong.replay.memory import write_memory_snapshot
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.packing import BlockStore, Collator, pack, write_blocks
from lifelong.stream.tokenize import train_tokenizer
from tests.test_docs import python_blocks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

T = 8
STAGES = [("wiki", 200), ("news", 100), ("wiki", 40), ("bio", 300)]


@pytest.fixture
def adapter() -> Any:
    return importlib.import_module("lifelong.adapters.avalanche")


@pytest.fixture
def stores(tmp_path: Path) -> list[BlockStore]:
    return [
        write_blocks(tmp_path / f"{i}.arrow", pack([np.arange(size * T) + 10_000 * i], T), 1 << 20)
        for i, (_, size) in enumerate(STAGES)
    ]


def test_stages_are_experiences(adapter: Any, stores: list[BlockStore]) -> None:
    from torch.utils.data import DataLoader

    stages = [(name, store) for (name, _), store in zip(STAGES, stores, strict=True)]
    benchmark = adapter.as_benchmark(stages, Collator("clm", T, pad_id=0), valid=stages[:1])
    assert [len(experience.dataset) for experience in benchmark.train_stream] == [200, 100, 40, 300]
    assert len(benchmark.test_stream) == 1
    third = benchmark.train_stream[2].dataset
    assert set(third.targets) == {0}
    batch = next(iter(DataLoader(third, batch_size=4, collate_fn=third.collate_fn)))
    assert batch["input_ids"].tolist() == [store.ids.tolist() for store in stores[2][:4]]
    assert batch["domain_ids"].tolist() == [0] * 4
    assert batch["labels"].shape == (4, T)


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer([load_domain("licences")], vocab_size=300, max_bytes=10_000)
    tokenizer.save_pretrained(RunFolder("runs/tiny-ewc").initial.tokenizer)
    (block,) = python_blocks("how_to/compare_methods.md")
    page: dict[str, Any] = {}
    exec(compile(block, "compare_methods.md", "exec"), page)
    assert [set(experience.dataset.targets) for experience in page["benchmark"].train_stream] == [{0}, {1}]
    assert page["batch"]["input_ids"].shape == (16, 64)
    assert page["batch"]["domain_ids"].tolist() == [1] * 16


@pytest.mark.parametrize("policy", ["reservoir", "experience-balanced", "domain-balanced"])
def test_our_policies_divide_as_those_of_avalanche(stores: list[BlockStore], tmp_path: Path, policy: str) -> None:
    from tests.support_avalanche import stored_rows

    ours: Counter[int] = Counter()
    theirs: Counter[int] = Counter()
    for seed in range(20):
        previous = None
        for stage, ((name, _), store) in enumerate(zip(STAGES, stores, strict=True)):
            memory = write_memory_snapshot(
                previous,
                name,
                store,
                capacity_tokens=60 * T,
                policy=policy,
                seed=seed,
                out=tmp_path / f"{seed}-{stage}",
            )
            previous = memory.path
        ours.update({item.stage: item.blocks for item in memory.experiences})
        rows = stored_rows(policy, STAGES, 60, seed=seed)
        assert len(set(rows)) == len(rows) <= 60
        theirs.update(stage for stage, _ in rows)
    for stage in range(len(STAGES)):
        assert ours[stage] / ours.total() == pytest.approx(theirs[stage] / theirs.total(), abs=0.05)


def test_avalanches_parametric_buffer_keeps_what_came_last() -> None:
    """A bug of Avalanche 0.6.0 with no grouping: nine tenths of its memory are the newest stage, whatever its share."""
    from tests.support_avalanche import stored_rows

    rows = stored_rows("parametric", STAGES, 60)
    assert sum(stage == 3 for stage, _ in rows) >= 0.85 * len(rows)
