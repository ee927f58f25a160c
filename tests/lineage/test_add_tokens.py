"""Tokens added for a domain: tokenizer and model grow together, old logits stay."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lifelong.errors import InputError
from lifelong.lineage.add_tokens import expand_with_tokens
from lifelong.stream.tokenizers.grow import grow_tokenizer
from tests.support import run_cli, tiny_checkpoint

COUNT = 12
TEXT = "The court hears an appeal on the statute of evidence."


@pytest.fixture(scope="module")
def base(cards, tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / "model", cards)


@pytest.fixture(scope="module")
def grown(base, cards, tmp_path_factory):
    out = tmp_path_factory.mktemp("grown") / "model"
    return out, expand_with_tokens(base, out, str(cards / "law.yaml"), COUNT, targets={})


def logits(folder, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


def test_old_logits_are_exact_and_the_text_takes_fewer_tokens(base, grown):
    out, report = grown
    old, new = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(out)
    assert len(new) == len(old) + COUNT == report.target["vocab_size"]
    assert len(new(TEXT).input_ids) < len(old(TEXT).input_ids)
    assert new.decode(new(TEXT).input_ids) == TEXT
    ids = old(TEXT).input_ids
    torch.testing.assert_close(logits(base, ids), logits(out, ids)[..., : len(old)], rtol=0, atol=1e-13)
    kept = json.loads((out / "expansion.json").read_text())
    before, after = kept["added_tokens"]["tokens_per_word"]
    assert after < before
    assert f"{COUNT} tokens of law: {before:.3f} -> {after:.3f} tokens per word" in kept["notes"][-1]
    assert len(kept["added_tokens"]["tokens"]) == COUNT
    assert "bits per byte" in report.notes[-1]


def test_a_new_token_begins_as_the_mean_of_its_pieces(base, grown, cards):
    from lifelong.stream.cards.documents import read_documents
    from lifelong.stream.cards.domain import load_domain

    texts = (document.text for document in read_documents(load_domain(cards / "law.yaml"), "train"))
    pieces = grow_tokenizer(AutoTokenizer.from_pretrained(base), texts, COUNT).pieces
    small, large = (transformers.AutoModelForCausalLM.from_pretrained(folder) for folder in (base, grown[0]))
    assert len(pieces) == COUNT
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = small.state_dict()[name], large.state_dict()[name]
        assert torch.equal(new[: len(old)], old)
        for token, parts in pieces.items():
            assert torch.equal(new[token], old[list(parts)].double().mean(0).float())


def test_rows_that_no_token_has_are_taken_first(base, cards, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(384)
    model.save_pretrained(tmp_path / "padded")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "padded")
    report = expand_with_tokens(
        tmp_path / "padded", tmp_path / "out", str(cards / "law.yaml"), 5, targets={"layers": 3}
    )
    assert report.target["vocab_size"] == 384
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 325
    rows = [
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).lm_head.weight for name in ("padded", "out")
    ]
    assert torch.equal(rows[0][:320], rows[1][:320])
    assert not torch.equal(rows[0][320:325], rows[1][320:325])
    assert torch.equal(rows[0][325:], rows[1][325:])


def unigram(texts):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=40, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>")
    tokenizer.add_special_tokens({"pad_token": "<late>"})  # behind the pieces, where the new ones would come
    return tokenizer


def test_pieces_of_a_unigram_tokenizer_are_found_and_survive_saving(tmp_path):
    texts = ["court statute appeal evidence"] * 40
    old = unigram(["a boat is at sea and the wind is low", "code vale spur type"] * 20)
    grown = grow_tokenizer(old, texts, 8)
    assert len(grown.tokenizer(texts[0]).input_ids) < len(old(texts[0]).input_ids)
    assert grown.tokenizer.pad_token_id == old.pad_token_id
    assert grown.size == len(old) + 8
    grown.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(texts).input_ids == grown.tokenizer(texts).input_ids
    assert again("wood boo 7").input_ids == old("wood boo 7").input_ids


def test_numbers_stay_in_their_pieces():
    grown = grow_tokenizer(unigram(["1986 1987 law art"] * 30), ["1986 law 1987 lawart"] * 30, 2)
    assert not any(
        letter.isdigit() for token in grown.tokenizer.convert_ids_to_tokens(list(grown.pieces)) for letter in token
    )


@pytest.mark.parametrize(("card", "count", "message"), [
    ("law", 0, "the number of tokens is at least 1, not 0"),
    ("law", 100_000, r"the text gives \d+ new tokens that occur at least 5 times, and 100000 are wanted"),
    ("lawn", 5, "there is no domain 'lawn'|no such"),
])  # fmt: skip
def test_what_cannot_be_added_is_refused_and_nothing_written(card, count, message, base, cards, tmp_path, monkeypatch):
    monkeypatch.setenv("LIFELONG_DOMAINS", str(cards))
    with pytest.raises(InputError, match=message):
        expand_with_tokens(base, tmp_path / "out", card, count, targets={})
    assert list(tmp_path.iterdir()) == []


def test_other_kinds_of_tokenizers_are_refused():
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(
        InputError, match="the tokenizer is WordPiece; tokens are added to fast tokenizers of the kinds BPE"
    ):
        grow_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), ["a"], 1)
    with pytest.raises(InputError, match="a slow one"):
        grow_tokenizer(transformers.ByT5Tokenizer(), ["a"], 1)


def test_the_verb_prints_both_figures(base, cards, tmp_path, monkeypatch, capsys):
    law = cards / "law.yaml"
    assert run_cli(monkeypatch, "expand", base, tmp_path / "out", "--add-tokens-from", law, 3, "--json") == 0
    assert "tokens per word" in json.loads(capsys.readouterr().out)["notes"][-1]
    assert run_cli(monkeypatch, "expand", base, tmp_path / "b", "--add-tokens-from", law, 3, "--vocab-size", 400) == 2
