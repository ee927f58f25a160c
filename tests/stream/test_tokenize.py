from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from lifelong.errors import CorruptionError, InputError, UnknownNameError
from lifelong.files import file_hash
from lifelong.stream import tokenize
from lifelong.stream.cards import documents
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import Domain
from lifelong.stream.heldout import Heldout, write_heldout
from lifelong.stream.tokenize import manifest_of, tokenize_domain, train_tokenizer
from lifelong.stream.tokenizers import encoding
from lifelong.stream.tokenizers.load import load_tokenizer, tokenizer_fingerprint

from .conftest import sentences


def test_trained_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    assert len(tokenizer) == 300
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|pad|>", "<|mask|>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    text = "Any bytes: ünïcode \u2028 \t\n  end "
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(load_tokenizer(tmp_path)) == tokenizer_fingerprint(tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_tokenizer(tmp_path).mask_token_id == 2


def test_training_is_repeatable_and_gives_every_domain_its_share(write_card: Callable[..., Domain]) -> None:
    small, large = write_card("s", ["zebra quagga okapi"] * 60), write_card("l", sentences(8, 900))
    settings = {"vocab_size": 290, "seed": 1, "max_bytes": 20_000}
    first, again = (train_tokenizer([small, large], **settings) for _ in range(2))
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(again)
    assert tokenizer_fingerprint(first) != tokenizer_fingerprint(train_tokenizer([large], **settings))


def test_impossible_vocabulary(write_card: Callable[..., Domain]) -> None:
    domain = write_card("d", ["a b c"] * 60)
    with pytest.raises(InputError, match="at least 259"):
        train_tokenizer([domain], vocab_size=100)
    with pytest.raises(InputError, match="gives only"):
        train_tokenizer([domain], vocab_size=5000)
    with pytest.raises(UnknownNameError, match="tokenizer kind 'bep'; did you mean 'bpe'"):
        train_tokenizer([domain], kind="bep")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_tokenizer("nobody/no-such-tokenizer")


def test_blocks_hold_every_document_between_first_and_last_token(
    tokenizer: Any, write_card: Callable[..., Domain], tmp_path: Path
) -> None:
    domain = write_card("d", sentences(9, 200))
    store = tokenize_domain(domain, "train", tokenizer, sequence_length=32, cache_dir=tmp_path / "c")
    expected: list[int] = []
    for document in read_documents(domain, "train"):
        expected += [0, *tokenizer(document.text)["input_ids"], 0]
    assert np.concatenate([block.ids for block in store]).tolist() == expected
    manifest = manifest_of(store)
    assert manifest["tokens"] == len(expected) == store.num_tokens
    assert manifest["documents"] == len(list(read_documents(domain, "train")))


def test_tokenised_once(
    tokenizer: Any, write_card: Callable[..., Domain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = write_card("d", sentences(10, 100))
    settings = {"sequence_length": 32, "cache_dir": tmp_path / "c"}
    first = tokenize_domain(domain, "train", tokenizer, **settings)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("tokenised again")

    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "_tokenize_to", refuse)
        again = tokenize_domain(domain, "train", tokenizer, **settings)
        assert (again.path, again.fingerprint) == (first.path, first.fingerprint)
        for changed in (
            lambda: tokenize_domain(domain, "valid", tokenizer, **settings),
            lambda: tokenize_domain(domain, "train", tokenizer, **{**settings, "sequence_length": 16}),
            lambda: tokenize_domain(write_card("d", ["x"] * 60), "train", tokenizer, **settings),
        ):
            with pytest.raises(AssertionError, match="tokenised again"):
                changed()


def test_what_is_read_is_told_about_once_a_megabyte(
    tokenizer: Any, write_card: Callable[..., Domain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "TELL_EVERY", 10_000)
    domain, told = write_card("sea", sentences(3, 900)), []
    store = tokenize_domain(
        domain, "train", tokenizer, sequence_length=32, cache_dir=tmp_path, read=lambda *of: told.append(of)
    )
    total = manifest_of(store)["bytes"]
    assert len(told) == total // 10_000 > 1
    assert all(0 < 10_000 * number <= size < total + 10_000 for number, (_, size) in enumerate(told, 1))
    assert {name for name, _ in told} == {"sea"}
    told.clear()
    tokenize_domain(
        domain, "train", tokenizer, sequence_length=32, cache_dir=tmp_path, read=lambda *of: told.append(of)
    )
    assert told == [], "the cache is not read as text"


def test_failure_leaves_no_cache(tokenizer: Any, write_card: Callable[..., Domain], tmp_path: Path) -> None:
    domain = write_card("d", [*sentences(11, 100), 7])
    with pytest.raises(InputError, match=r"d\.jsonl:101: text: a text is needed"):
        tokenize_domain(domain, "train", tokenizer, sequence_length=32, cache_dir=tmp_path / "c")
    assert list((tmp_path / "c" / "blocks").iterdir()) == []
    skipping = write_card("d", [*sentences(11, 100), 7], on_bad_document="skip")
    store = tokenize_domain(skipping, "train", tokenizer, sequence_length=32, cache_dir=tmp_path / "c")
    assert manifest_of(store)["bad"] == 1


def test_worker_processes_give_the_same(
    tokenizer: Any, write_card: Callable[..., Domain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "_BATCH_DOCUMENTS", 16)
    domain = write_card("d", sentences(12, 100))
    stores = [
        tokenize_domain(domain, "train", tokenizer, sequence_length=32, cache_dir=tmp_path / str(n), num_proc=n)
        for n in (None, 2)
    ]
    assert stores[0].path.read_bytes() == stores[1].path.read_bytes()


def test_a_long_document_goes_in_pieces_with_the_same_tokens(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(sentences(13, 100)) + "\n\n  " + "x" * 3000
    whole = tokenizer(text)["input_ids"]
    monkeypatch.setattr(encoding, "_LONGEST_PIECE", 1000)
    pieces = encoding._pieces(text)
    assert len(pieces) > 10
    assert "".join(pieces) == text
    (ids,) = encoding.Encoder(tokenizer).encode_batch([text])
    assert ids[: len(whole) // 2].tolist() == whole[: len(whole) // 2]
    assert tokenizer.decode(ids) == text


def test_heldout(tokenizer: Any, write_card: Callable[..., Domain], tmp_path: Path) -> None:
    domain = write_card("d", sentences(14, 400))
    documents = list(read_documents(domain, "valid"))
    heldout = write_heldout(domain, "valid", tokenizer, None, tmp_path / "h")
    assert (heldout.domain, heldout.split, len(heldout)) == ("d", "valid", len(documents))
    for i, document in enumerate(documents):
        assert heldout.ids(i).tolist() == [0, *tokenizer(document.text)["input_ids"]]
        assert (heldout.text(i), heldout.key(i), heldout.num_bytes(i)) == (
            document.text,
            document.key,
            document.num_bytes,
        )
    few = write_heldout(domain, "valid", tokenizer, 100, tmp_path / "few")
    assert few.num_tokens >= 100 > few.num_tokens - (len(few.ids(len(few) - 1)) - 1)
    assert [heldout.head(100).key(i) for i in range(len(few))] == [few.key(i) for i in range(len(few))]
    assert len(heldout.head(100)) == len(few)
    assert heldout.tokenizer_fingerprint == tokenizer_fingerprint(tokenizer)
    with pytest.raises(IndexError):
        few.ids(len(few))
    with pytest.raises(CorruptionError, match="no readable held-out documents"):
        Heldout.open(tmp_path)


def test_tokenizer_without_any_front_token_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])))
    with pytest.raises(InputError, match="no BOS, EOS or CLS"):
        tokenizer_fingerprint(bare)


def _flip(path: Path, number: int) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content) // 3 + number):
        content[place] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a bit of the blocks": lambda folder: _flip(folder / "blocks.arrow", 1),
    "blocks of an earlier version": lambda folder: (folder / "manifest.json").write_text(
        json.dumps({"settings": json.loads((folder / "manifest.json").read_text())["settings"]})
    ),
    "a count": lambda folder: (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text().replace('"tokens": ', '"tokens": 1')
    ),
    "no blocks": lambda folder: (folder / "blocks.arrow").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "a manifest that is no JSON": lambda folder: (folder / "manifest.json").write_text("]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_never_trained_on(tmp_path, write_card, damage):
    domain = write_card("d", sentences(3, 200))
    tokenizer = train_tokenizer([domain], vocab_size=300)
    notes: list[str] = []

    def tokenized():
        return tokenize_domain(
            domain, "train", tokenizer, sequence_length=32, cache_dir=tmp_path / "c", tell=notes.append
        )

    store = tokenized()
    folder, rows = store.path.parent, [tuple(block.ids) for block in store]
    before, counts = store.path.read_bytes(), manifest_of(store)
    tokenized()
    assert notes == []
    DAMAGE[damage](folder)
    again = tokenized()
    assert [tuple(block.ids) for block in again] == rows
    assert again.path.read_bytes() == before
    assert manifest_of(again) == counts
    assert len(notes) == 1
    assert "d is tokenised again" in notes[0]


def test_blocks_are_read_for_their_hash_once_a_process(tmp_path, write_card, monkeypatch):
    domain = write_card("d", sentences(3, 200))
    tokenizer, hashed = train_tokenizer([domain], vocab_size=300), []

    def tokenized():
        return tokenize_domain(domain, "train", tokenizer, sequence_length=32, cache_dir=tmp_path / "c")

    tokenized()
    monkeypatch.setattr(tokenize, "file_hash", lambda path: hashed.append(path) or file_hash(path))
    tokenized(), tokenized()
    assert len(hashed) == 1
