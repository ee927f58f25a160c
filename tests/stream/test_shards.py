"""A large corpus is read in pieces: which documents a piece holds, the order, and what stays the same."""

import errno
import gzip
import json
import os
import pickle
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifelong.errors import InputError
from lifelong.ledger.storage import storage_message
from lifelong.stream import shards
from lifelong.stream.cards.documents import Tally, read_documents, read_piece
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.cards.pieces import Pieces
from lifelong.stream.shard_cache import prune_shards
from lifelong.stream.shards import ShardedCorpus
from lifelong.stream.tokenizers.encoding import Encoder


def card(folder, files, name="big", **keys):
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"name": name, "source": {"files": files}, **keys}))
    return load_domain(path)


def texts(count, seed=0):
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(500)}" for _ in range(draw.randrange(1, 60))) for _ in range(count)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


def write_parquet(path, rows):
    pq.write_table(pa.table({"text": rows}), path, row_group_size=7)


def write_blocks_of_text(path, rows):
    path.write_text("\n\n".join(row.replace(" w1 ", "\nw1 ") for row in rows) + "\n\n\n")


WRITERS = {"jsonl": write_jsonl, "parquet": write_parquet, "txt": write_blocks_of_text}


@pytest.mark.parametrize("ending", WRITERS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(piece_bytes=st.integers(20, 2000))
def test_every_document_is_in_exactly_one_piece(ending, piece_bytes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    WRITERS[ending](folder / f"a.{ending}", texts(40))
    domain = card(folder, [f"a.{ending}"])
    pieces = Pieces(domain.source.files_of(domain), piece_bytes)
    found = [document for number in range(len(pieces)) for document in read_piece(domain, pieces[number], Tally())]
    assert [document.key for document in found] == [document.key for document in read_documents(domain, "train")]
    if piece_bytes < 200:
        assert len(pieces) > 3


@settings(max_examples=30, deadline=None, derandomize=True)
@given(text=st.text(alphabet="ab\n \r", max_size=60), piece_bytes=st.integers(1, 20))
def test_blocks_of_plain_text_at_any_cut(text, piece_bytes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    (folder / "a.txt").write_text(text, newline="")
    domain = card(folder, ["a.txt"], held_out=0.0001)
    pieces = Pieces(domain.source.files_of(domain), piece_bytes)
    found = [document.text for number in range(len(pieces)) for document in read_piece(domain, pieces[number], Tally())]
    try:
        whole = [document.text for document in read_documents(domain, "train")]
    except InputError:
        whole = []
    assert found == whole


def test_small_files_are_read_together_and_packed_ones_whole(tmp_path):
    for number in range(40):
        write_jsonl(tmp_path / f"{number:02d}.jsonl", texts(3, seed=number))
    (tmp_path / "zz.jsonl.gz").write_bytes(gzip.compress(b'{"text": "packed"}\n' * 4000))
    domain = card(tmp_path, ["*.jsonl", "*.jsonl.gz"])
    pieces = Pieces(domain.source.files_of(domain), 1000)
    assert 3 < len(pieces) < 40
    assert sum(len(piece) for piece in (pieces[number] for number in range(len(pieces)))) == 41
    assert all(part.begin == 0 and part.end is None for number in range(len(pieces)) for part in pieces[number])


def test_the_line_of_a_bad_document_is_told_by_its_place(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", texts(50))
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{no json\n")
    domain = card(tmp_path, ["a.jsonl"])
    pieces = Pieces(domain.source.files_of(domain), 500)
    with pytest.raises(InputError, match=r"a\.jsonl, byte [\d,]+: not valid JSON"):
        list(read_piece(domain, pieces[len(pieces) - 1], Tally()))


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(shards, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(shards, "PIECE_BYTES", 2000)
    monkeypatch.setattr(shards, "_BLOCKS_A_PIECE", 1)


@pytest.fixture
def corpus_of(tmp_path, small_pieces, tokenizer):
    write_jsonl(tmp_path / "a.jsonl", texts(900))

    def make(cache="cache", **settings):
        given = {"sequence_length": 16, "num_blocks": 60, "seed": 3, "stage": 1, **settings}
        return ShardedCorpus.of(card(tmp_path, ["a.jsonl"]), tokenizer, cache_dir=tmp_path / cache, **given)

    return make


def rows_of(corpus, begin, end):
    return [corpus[corpus.drawn(cursor)[1]].ids.tolist() for cursor in range(begin, end)]


def test_the_order_is_the_same_wherever_one_begins_to_ask(corpus_of):
    first, second = corpus_of(), corpus_of("another")
    everything = rows_of(first, 0, 400)
    assert rows_of(second, 250, 400) == everything[250:]
    assert rows_of(second, 0, 250) == everything[:250]
    assert rows_of(corpus_of(seed=4), 0, 100) != everything[:100]
    assert rows_of(corpus_of(stage=2), 0, 100) != everything[:100]
    for corpus in (first, second):
        corpus.close()


def test_an_epoch_holds_every_block_once_and_the_next_is_in_another_order(corpus_of):
    corpus = corpus_of()
    total = next(cursor for cursor in range(10**6) if corpus.drawn(cursor)[0] == 1)
    rows = [corpus.drawn(cursor) for cursor in range(2 * total + 1)]
    assert sorted(row for epoch, row in rows[:total]) == list(range(total))
    assert sorted(row for epoch, row in rows[total : 2 * total]) == list(range(total))
    assert rows[:total] != [(0, row) for epoch, row in rows[total : 2 * total]]
    assert rows[-1][0] == 2
    tokens = sum(len(corpus[row].ids) for row in range(total))
    whole = [len(ids) for ids in corpus.encoder.encode_all(d.text for d in read_documents(corpus.domain, "train"))]
    assert tokens == sum(whole)
    corpus.close()


def test_the_first_block_needs_one_piece_and_the_budget_bounds_the_rest(corpus_of, tmp_path):
    corpus = corpus_of()
    corpus.begin()
    corpus.close()  # what is made ahead is waited for
    shard_files = list((tmp_path / "cache").rglob("blocks.arrow"))
    assert 1 <= len(shard_files) <= 1 + shards.WINDOWS[1] < len(corpus.pieces)
    again = corpus_of()
    assert 60 <= len(again) < 500
    assert len(again) == len(again.lengths())
    assert again.num_tokens == again.lengths().sum()
    again.drawn(300)  # training went on for longer than was planned
    assert len(again) == len(corpus_of())
    assert again.fingerprint == corpus_of().fingerprint
    again.close()


def test_a_damaged_shard_is_made_again_with_the_same_blocks(corpus_of, tmp_path):
    corpus = corpus_of()
    before = rows_of(corpus, 0, 50)
    corpus.close()
    for path in (tmp_path / "cache").rglob("blocks.arrow"):
        path.write_bytes(path.read_bytes()[:-40])
    notes = []
    assert rows_of(corpus_of(tell=notes.append), 0, 50) == before
    assert notes
    assert all("damaged" in note for note in notes)


def test_a_corpus_travels_to_a_loader_of_another_process(corpus_of):
    corpus = corpus_of(read=lambda *_: None)
    expected = rows_of(corpus, 0, 30)
    copied = pickle.loads(pickle.dumps(corpus))
    assert rows_of(copied, 0, 30) == expected
    corpus.close()


def test_what_is_about_all_of_a_text_reads_all_of_it(tmp_path, small_pieces, tokenizer):
    write_jsonl(tmp_path / "a.jsonl", texts(900))
    given = {"sequence_length": 16, "num_blocks": 60, "seed": 3, "stage": 1, "cache_dir": tmp_path / "cache"}
    for keys in ({"dedup": "exact"}, {"take_bytes": 10_000}):
        assert ShardedCorpus.of(card(tmp_path, ["a.jsonl"], **keys), tokenizer, **given) is None
    monkey = card(tmp_path, ["a.jsonl"])
    assert ShardedCorpus.of(monkey, tokenizer, **given) is not None


def test_a_bad_document_ahead_is_told_when_training_comes_to_it(tmp_path, small_pieces, tokenizer):
    rows = texts(900)
    write_jsonl(tmp_path / "a.jsonl", rows)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{no json\n")
    domain = card(tmp_path, ["a.jsonl"])
    given = {"sequence_length": 16, "num_blocks": 10**6, "seed": 3, "stage": 1, "cache_dir": tmp_path / "cache"}
    corpus = ShardedCorpus.of(domain, tokenizer, **given)
    corpus.begin()
    with pytest.raises(InputError, match="not valid JSON"):
        corpus.drawn(10**6)
    corpus.close()


def test_all_text_held_out_is_said(tmp_path, small_pieces, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": " "}\n' * 900)
    given = {"sequence_length": 16, "num_blocks": 60, "seed": 3, "stage": 1, "cache_dir": tmp_path / "cache"}
    corpus = ShardedCorpus.of(card(tmp_path, ["a.jsonl"]), tokenizer, **given)
    with pytest.raises(InputError, match="holds no document"):
        corpus.begin()


def test_lengths_are_those_of_the_blocks(corpus_of):
    corpus = corpus_of()
    assert np.array_equal(corpus.lengths(), [len(corpus[row].ids) for row in range(len(corpus))])
    corpus.close()


def test_the_cache_keeps_what_was_used_last(corpus_of, tmp_path, monkeypatch):
    corpus = corpus_of()
    expected = rows_of(corpus, 0, 200)
    corpus.close()
    folder = tmp_path / "cache" / "shards"
    before = prune_shards(folder, 10**9)
    assert before.removed == 0
    assert before.kept >= 4
    newest = max(folder.glob("*/*/"), key=lambda path: path.stat().st_mtime_ns)
    after = prune_shards(folder, before.kept_bytes // 2)
    assert after.kept_bytes <= before.kept_bytes // 2 < before.kept_bytes == after.kept_bytes + after.removed_bytes
    assert newest.is_dir()
    monkeypatch.setenv("LIFELONG_CACHE_LIMIT", "1kB")
    assert rows_of(corpus_of(), 0, 200) == expected
    monkeypatch.setenv("LIFELONG_CACHE_LIMIT", "much")
    with pytest.raises(InputError, match="LIFELONG_CACHE_LIMIT: a size like 20GB, not 'much'"):
        corpus_of().begin()


def test_a_full_disk_is_one_message_that_names_the_cache(corpus_of, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards, "write_once", full)
    with pytest.raises(OSError, match="No space left") as caught:
        corpus_of().begin()
    assert "cache/shards" in storage_message(caught.value, None)


def test_a_fingerprint_is_of_the_text_wherever_it_lies_and_a_tokenizer_is_hashed_once(
    tmp_path, small_pieces, tokenizer, monkeypatch
):
    hashed = []
    real = Encoder.fingerprint.fget
    monkeypatch.setattr(Encoder, "fingerprint", property(lambda self: hashed.append(1) or real(self)))
    given = {"sequence_length": 16, "num_blocks": 60, "seed": 3, "stage": 1}
    found = []
    for place, seed in (("one", 0), ("two", 0), ("other", 1)):
        (tmp_path / place).mkdir()
        write_jsonl(tmp_path / place / "a.jsonl", texts(900, seed=seed))
        os.utime(tmp_path / place / "a.jsonl", (len(found), len(found)))
        corpus = ShardedCorpus.of(card(tmp_path / place, ["a.jsonl"]), tokenizer, cache_dir=tmp_path / place, **given)
        found.append(corpus.fingerprint)
        corpus.close()
    assert found[0] == found[1] != found[2]
    assert len(hashed) == 3
