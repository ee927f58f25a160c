from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifelong.errors import CorruptionError, InputError
from lifelong.stream.collator import IGNORED, Collator, PackedRow
from lifelong.stream.masking import evaluation_mask
from lifelong.stream.packing import Block, BlockStore, pack, write_blocks

_DOCUMENTS = st.lists(st.lists(st.integers(0, 70_000), min_size=1, max_size=40), min_size=1, max_size=12)


def _row(block: Block, mask_key: int = 1) -> PackedRow:
    return PackedRow(block=block, domain_id=0, is_replay=False, mask_key=mask_key)


@given(_DOCUMENTS, st.integers(2, 16))
def test_no_token_is_dropped_or_repeated(documents: list[list[int]], length: int) -> None:
    blocks = list(pack((np.array(d) for d in documents), length))
    assert [len(b.ids) for b in blocks[:-1]] == [length] * (len(blocks) - 1)
    rebuilt: list[list[int]] = []
    for block in blocks:
        for begin, end, offset in zip(block.starts, [*block.starts[1:], len(block.ids)], block.offsets, strict=True):
            if offset == 0:
                rebuilt.append([])
            assert len(rebuilt[-1]) == offset
            rebuilt[-1].extend(block.ids[begin:end].tolist())
    assert rebuilt == documents


@pytest.mark.parametrize("vocab_size", [1000, 100_000])
def test_store_gives_back_what_was_written(tmp_path: Path, vocab_size: int) -> None:
    chance = np.random.default_rng(0)
    documents = [chance.integers(0, vocab_size, size=n) for n in chance.integers(1, 60, size=700)]
    blocks = list(pack(documents, 16))
    store = write_blocks(tmp_path / "b.arrow", blocks, vocab_size)
    assert len(store) == len(blocks) > 512
    assert store.num_tokens == sum(map(len, documents))
    for i in (0, 255, 256, len(blocks) - 1):
        assert all(np.array_equal(getattr(store[i], field), getattr(blocks[i], field)) for field in Block.__slots__)
    assert np.array_equal(store[-1].ids, blocks[-1].ids)
    with pytest.raises(IndexError):
        store[len(blocks)]


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def blocks() -> Any:
        yield from pack([np.arange(30)], 4)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_blocks(tmp_path / "b.arrow", blocks(), 100)
    assert list(tmp_path.iterdir()) == []


def test_damaged_store_is_named(tmp_path: Path) -> None:
    path = tmp_path / "b.arrow"
    write_blocks(path, pack([np.arange(3000)], 4), 5000)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(CorruptionError, match=r"b\.arrow"):
        BlockStore(path)


def test_clm_batch() -> None:
    (block,) = pack([np.array([7, 1, 2]), np.array([7, 3])], 8)
    batch = Collator("clm", 8, pad_id=9)([_row(block)])
    assert batch["input_ids"].tolist() == [[7, 1, 2, 7, 3, 9, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 1, 2, -100, 3, -100, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 0, 0, 0]]


def test_mlm_masks_are_a_function_of_the_row_and_have_the_right_shares() -> None:
    ids = np.tile(np.arange(5, 105), 400)
    (block,) = pack([np.concatenate([[0], ids])], len(ids) + 1)
    collator = Collator("mlm", len(ids) + 1, pad_id=1, mask_id=2, vocab_size=200, special_ids=(0, 1, 2))
    batch, again, other = (collator([_row(block, key)]) for key in (5, 5, 6))
    assert batch["input_ids"].equal(again["input_ids"])
    assert not batch["labels"].equal(other["labels"])
    labels, inputs = batch["labels"][0].numpy(), batch["input_ids"][0].numpy()
    chosen = labels != IGNORED
    assert not chosen[0], "a special token is never predicted"
    assert np.array_equal(labels[chosen], block.ids[chosen])
    assert np.array_equal(inputs[~chosen], block.ids[~chosen])
    assert chosen.mean() == pytest.approx(0.15, abs=0.01)
    masked = inputs[chosen] == 2
    kept = inputs[chosen] == labels[chosen]
    assert masked.mean() == pytest.approx(0.8, abs=0.02)
    assert kept.mean() == pytest.approx(0.1, abs=0.02)
    assert inputs[chosen][~masked].min() > 2


def test_mlm_without_mask_token_is_refused() -> None:
    with pytest.raises(InputError, match="mask token"):
        Collator("mlm", 8, pad_id=0)


def test_evaluation_mask_depends_on_the_document_alone() -> None:
    mask = evaluation_mask("a", 5000)
    assert np.array_equal(mask[:100], evaluation_mask("a", 100))
    assert not np.array_equal(mask, evaluation_mask("b", 5000))
    assert not mask[0]
    assert mask.mean() == pytest.approx(0.15, abs=0.02)
