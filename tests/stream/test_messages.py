"""Columns of messages, which the tokenizer's chat template renders."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lifelong.errors import InputError
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.heldout import write_heldout
from lifelong.stream.tokenize import tokenize_domain, train_tokenizer
from lifelong.stream.tokenizers.encoding import Encoder

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(autouse=True)
def _no_template_yet(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)


def talk(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"what is {number}?"}, {"role": "assistant", "content": f"it is {number * 7}."}]


def card(folder: Path, kind: str = "jsonl", rows: list[dict] | None = None, field: str = "messages_field") -> Path:
    rows = rows or [{"messages": talk(number), "id": number} for number in range(60)]
    data = folder / f"chat.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), data)
    else:
        data.write_text("\n".join(map(json.dumps, rows)))
    source = {"hub": "hubset"} if kind == "hub" else {"files": [data.name]}
    path = folder / "chat.yaml"
    path.write_text(json.dumps({"source": source, field: "messages", "held_out": 0.2}))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_messages_are_rendered_by_the_template_of_the_tokenizer(tmp_path, tokenizer, kind):
    tokenizer.chat_template = TEMPLATE
    domain = load_domain(card(tmp_path, kind))
    heldout = write_heldout(domain, "test", tokenizer, None, tmp_path / "heldout")
    for index in range(len(heldout)):
        text = heldout.text(index)
        number = int(text.split("?")[0].split()[-1])
        assert text == f"<user>what is {number}?\n<assistant>it is {number * 7}.\n"
        assert heldout.num_bytes(index) == len(text.encode())
        assert tokenizer.decode(heldout.ids(index)) == tokenizer.bos_token + text
    store = tokenize_domain(domain, "train", tokenizer, sequence_length=32, cache_dir=tmp_path / "cache")
    keys = [document.key for document in read_documents(domain, "train")]
    (block, *_), begins = [store[index].ids for index in range(len(store))], tokenizer.bos_token + "<user>what is "
    assert tokenizer.decode(block).startswith(begins)
    assert len(set(keys)) == len(keys) == 60 - len(heldout) - sum(1 for _ in read_documents(domain, "valid"))


def test_a_local_data_set_of_the_hubs_layout(tmp_path, tokenizer):
    tokenizer.chat_template = TEMPLATE
    folder = tmp_path / "hubset"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"messages": talk(number)}) for number in range(40)))
    domain = load_domain(card(tmp_path, "hub", rows=[{}]))
    documents = list(read_documents(domain, "train"))
    assert Encoder(tokenizer).rendered(documents[0].text).startswith("<user>what is ")


def test_another_template_is_another_cache(tmp_path, tokenizer):
    domain, found = load_domain(card(tmp_path)), []
    for template in (TEMPLATE, TEMPLATE.replace("<{{", "[{{")):
        tokenizer.chat_template = template
        found.append(tokenize_domain(domain, "train", tokenizer, sequence_length=32, cache_dir=tmp_path / "cache").path)
    assert found[0] != found[1]


def test_a_tokenizer_without_a_template_is_refused(tmp_path, tokenizer):
    domain = load_domain(card(tmp_path))
    with pytest.raises(InputError, match="has no chat template, which the messages of a card's messages_field"):
        tokenize_domain(domain, "train", tokenizer, sequence_length=32, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache/blocks").iterdir())
    with pytest.raises(InputError, match=r"tokenizer\.train: domain 'chat' holds messages"):
        train_tokenizer([domain], vocab_size=300)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"does not render .*roles must alternate"):
        tokenize_domain(domain, "train", tokenizer, sequence_length=32, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("value", [[{"role": "user"}], "text", [{"role": "user", "content": ["a"]}], ["a"], {"a": 1}])
def test_what_is_no_list_of_messages_is_a_bad_document(tmp_path, value):
    domain = load_domain(card(tmp_path, rows=[{"messages": talk(1)}, {"messages": value}]))
    with pytest.raises(InputError, match=r"chat.jsonl:2: messages: no list of \{role, content\}"):
        list(read_documents(domain, "train"))


def test_messages_read_as_text_name_the_key(tmp_path):
    domain = load_domain(card(tmp_path, field="text_field"))
    with pytest.raises(InputError, match="a list of messages is read with messages_field"):
        list(read_documents(domain, "train"))
