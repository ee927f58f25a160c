from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lifelong.errors import InputError, UnknownNameError
from lifelong.stream.cards.documents import Tally, read_documents, read_piece, source_fingerprint
from lifelong.stream.cards.domain import Domain, load_domain
from lifelong.stream.cards.pieces import Pieces

from .conftest import sentences

TEXTS = [f"Text number {i}, with ünïcode and a\nsecond line." for i in range(60)]


def _load(folder: Path, source: dict[str, Any], **settings: Any) -> Domain:
    path = folder / "d.yaml"
    path.write_text(json.dumps({"name": "d", "source": source, **settings}), encoding="utf-8")
    return load_domain(path)


def _all(domain: Domain) -> list[str]:
    return [document.text for split in ("train", "valid", "test") for document in read_documents(domain, split)]


def _jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()


def _write(folder: Path, name: str) -> None:
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_bytes(_jsonl(TEXTS))
    elif name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(_jsonl(TEXTS)))
    elif name.endswith(".jsonl.zst"):
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(_jsonl(TEXTS))
    elif name.endswith(".parquet"):
        pq.write_table(pa.table({"id": range(60), "text": TEXTS}), path)
    else:
        mark = "\t" if name.endswith(".tsv") else ","
        rows = [f'"{text}"{mark}{i}' for i, text in enumerate(TEXTS)]
        path.write_text("\n".join([f"text{mark}id", *rows]) + "\n", encoding="utf-8")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.csv", "a.tsv"])
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    _write(tmp_path, name)
    assert sorted(_all(_load(tmp_path, {"files": [name]}))) == sorted(TEXTS)


def test_plain_text_by_block_and_by_file(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("\n\n" + "\n\n\n".join(TEXTS) + "\n", encoding="utf-8")
    assert sorted(_all(_load(tmp_path, {"files": ["all.txt"]}))) == sorted(TEXTS)
    folder = tmp_path / "many"
    folder.mkdir()
    for i, text in enumerate(TEXTS):
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    assert sorted(_all(_load(tmp_path, {"files": ["many/*.txt"]}))) == sorted(TEXTS)
    one = _load(tmp_path, {"files": ["all.txt"], "valid": "all.txt", "test": "all.txt", "documents": "file"})
    assert len(_all(one)) == 3


def test_hub_layout_in_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "corpus"
    folder.mkdir()
    pq.write_table(pa.table({"article": TEXTS}), folder / "train-00000-of-00001.parquet")
    pq.write_table(pa.table({"article": ["held out " + TEXTS[0]]}), folder / "validation-00000-of-00001.parquet")
    for streaming in (True, False):
        source = {"hub": str(folder), "valid": "validation", "streaming": streaming}
        domain = _load(tmp_path, source, text_field="article")
        assert domain.source.own_splits == {"train", "valid"}
        assert [d.text for d in read_documents(domain, "valid")] == ["held out " + TEXTS[0]]
        train, test = ({d.text for d in read_documents(domain, split)} for split in ("train", "test"))
        assert train | test == set(TEXTS)
        assert not train & test
        assert source_fingerprint(domain, "train") == source_fingerprint(domain, "train")
        pieces = Pieces(domain.source.files_of(domain) or [], 1)
        assert {d.text for n in range(len(pieces)) for d in read_piece(domain, pieces[n], Tally())} == train
    with pytest.raises(InputError, match="did you mean 'article'"):
        next(iter(read_documents(_load(tmp_path, source, text_field="articles"), "train")))
    with pytest.raises(InputError, match=r"source\.hub.*cannot be loaded"):
        next(iter(read_documents(_load(tmp_path, {**source, "split": "nope"}, text_field="article"), "train")))


def test_hub_without_network_says_so(tmp_path: Path) -> None:
    domain = _load(tmp_path, {"hub": "nobody/no-such-corpus"})
    with pytest.raises(InputError, match=r"d\.yaml: source\.hub: nobody/no-such-corpus.*cannot be loaded"):
        next(iter(read_documents(domain, "train")))


def test_cut_splits_are_disjoint_stable_and_of_the_size_asked_for(write_card: Callable[..., Domain]) -> None:
    texts = sentences(3, 2000, words=8)
    domain = write_card("d", texts, held_out=0.1)
    splits = {split: {d.key for d in read_documents(domain, split)} for split in ("train", "valid", "test")}
    assert sum(map(len, splits.values())) == 2000 == len(set().union(*splits.values()))
    assert len(splits["valid"]) == pytest.approx(200, rel=0.25)
    more = write_card("d", [*sentences(4, 500, words=8), *reversed(texts)], held_out=0.1)
    assert splits["test"] <= {d.key for d in read_documents(more, "test")}, "more text moves no document"


def test_given_splits_are_read_as_they_are(tmp_path: Path) -> None:
    for name, texts in (("a", TEXTS[:50]), ("v", TEXTS[50:])):
        (tmp_path / f"{name}.jsonl").write_bytes(_jsonl(texts))
    domain = _load(tmp_path, {"files": "a.jsonl", "valid": "v.jsonl", "test": "v.jsonl"})
    assert [d.text for d in read_documents(domain, "train")] == TEXTS[:50]
    assert [d.text for d in read_documents(domain, "test")] == TEXTS[50:]
    with pytest.raises(UnknownNameError, match="did you mean 'valid'"):
        next(iter(read_documents(domain, "validation")))


def test_a_share_is_written_as_in_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "some words"}\n')
    assert _load(tmp_path, {"files": ["a.jsonl"]}, held_out="20%").held_out == pytest.approx(0.2)


def test_dedup_drops_repeats_and_what_is_held_out(tmp_path: Path) -> None:
    long = sentences(5, 40, words=60)
    nearly = [text + " More." for text in long[:5]]
    (tmp_path / "a.jsonl").write_bytes(_jsonl([*long, *long[:10], "  ".join(long[3].split()), *nearly]))
    (tmp_path / "v.jsonl").write_bytes(_jsonl(long[:2]))
    source = {"files": "a.jsonl", "valid": "v.jsonl", "test": "v.jsonl"}
    counts = {}
    for dedup in ("none", "exact", "near"):
        tally = Tally()
        kept = [d.text for d in read_documents(_load(tmp_path, source, dedup=dedup), "train", tally)]
        counts[dedup] = len(kept)
        assert tally.duplicates == 56 - len(kept)
    assert counts == {"none": 56, "exact": 56 - 13, "near": 56 - 13 - 5}


def test_take_bytes_bounds_training_text_only(write_card: Callable[..., Domain]) -> None:
    domain = write_card("d", sentences(6, 400), take_bytes="10kB")
    tally = Tally()
    documents = list(read_documents(domain, "train", tally))
    assert 10_000 <= tally.bytes < 10_000 + documents[-1].num_bytes
    full = write_card("d", sentences(6, 400))
    assert list(read_documents(domain, "valid")) == list(read_documents(full, "valid"))


_BAD_LINES = {
    "not UTF-8": b'{"text": "caf\xe9"}',
    "not valid JSON": b'{"text": "cut',
    "a text is needed, this is int": b'{"text": 7}',
    "a text is needed, this is NoneType": b'{"text": null}',
    "there is no field 'text'; did you mean 'texts'": b'{"texts": "x"}',
    "must be an object": b'"just a string"',
    "an array of documents is not JSON lines": b'[{"text": "x"}',
    "half a surrogate pair": b'{"text": "\\ud800"}',
    "a NUL character": b'{"text": "a\\u0000b"}',
    "a document of": json.dumps({"text": "x" * 3000}).encode(),
    "a line of 100,0": json.dumps({"text": "x" * 100_000}).encode(),
}


@pytest.mark.parametrize("message", _BAD_LINES)
def test_bad_document_is_named_or_counted(tmp_path: Path, message: str) -> None:
    lines = _jsonl(TEXTS).splitlines()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines[:30], _BAD_LINES[message], b"", *lines[30:]]))
    settings = {"max_document_bytes": 2000}
    with pytest.raises(InputError, match=message) as error:
        _all(_load(tmp_path, {"files": ["a.jsonl"]}, **settings))
    assert f"{tmp_path / 'a.jsonl'}:31: " in str(error.value)
    assert "on_bad_document: skip" in str(error.value)
    domain = _load(tmp_path, {"files": ["a.jsonl"]}, on_bad_document="skip", **settings)
    assert sorted(_all(domain)) == sorted(TEXTS)
    tally = Tally()
    list(read_documents(domain, "train", tally))
    assert tally.bad == 1
    assert message in tally.bad_reasons[0]


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_compressed_file_cut_short(tmp_path: Path, ending: str) -> None:
    texts = sentences(7, 3000)
    path = tmp_path / f"a.jsonl.{ending}"
    if ending == "gz":
        path.write_bytes(gzip.compress(_jsonl(texts)))
    else:
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(_jsonl(texts))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"a\.jsonl\.{ending}:\d+: .*(cut short|not valid JSON)"):
        _all(_load(tmp_path, {"files": [path.name]}))
    skipping = _load(tmp_path, {"files": [path.name]}, on_bad_document="skip")
    tally = Tally()
    kept = list(read_documents(skipping, "train", tally))
    assert 100 < len(kept) < 3000
    assert any("cut short" in reason for reason in tally.bad_reasons)


def test_not_compressed_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(_jsonl(TEXTS))
    (tmp_path / "a.parquet").write_bytes(_jsonl(TEXTS))
    with pytest.raises(InputError, match=r"a\.jsonl\.gz:1: the compressed file is cut short or damaged"):
        _all(_load(tmp_path, {"files": ["a.jsonl.gz"]}))
    with pytest.raises(InputError, match="not a valid parquet file"):
        _all(_load(tmp_path, {"files": ["a.parquet"]}))


def test_tables_and_text_with_faults(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,id\n"one",1\n"two",2,3\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.csv:3: 3 cells in a table of 2 columns"):
        _all(_load(tmp_path, {"files": ["a.csv"]}))
    with pytest.raises(InputError, match=r"a\.csv:1: there is no column 'txt'; did you mean 'text'"):
        _all(_load(tmp_path, {"files": ["a.csv"]}, text_field="txt"))
    (tmp_path / "a.txt").write_bytes(b"fine\n\nalso\nb\xffd\n\nfine")
    with pytest.raises(InputError, match=r"a\.txt:4: not UTF-8"):
        _all(_load(tmp_path, {"files": ["a.txt"]}))
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"set source\.format to one of"):
        _all(_load(tmp_path, {"files": ["a.bin"]}))


def test_empty_splits(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match="the train split holds no document"):
        _all(_load(tmp_path, {"files": ["a.jsonl"]}))
    (tmp_path / "a.jsonl").write_bytes(_jsonl(["   ", "\n"]))
    with pytest.raises(InputError, match=r"2 empty"):
        _all(_load(tmp_path, {"files": ["a.jsonl"]}))
    (tmp_path / "a.jsonl").write_bytes(_jsonl(TEXTS[:2]))
    with pytest.raises(InputError, match=r"raise held_out, or name source\.valid"):
        list(read_documents(_load(tmp_path, {"files": ["a.jsonl"]}, held_out=0.01), "valid"))


def test_fingerprint_is_of_content_and_settings(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(_jsonl(TEXTS))
    domain = _load(tmp_path, {"files": ["a.jsonl"]})
    before = source_fingerprint(domain, "train", tmp_path / "memo")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.jsonl").write_bytes(_jsonl(TEXTS))
    assert source_fingerprint(_load(elsewhere, {"files": ["b.jsonl"]}), "train") == before
    assert source_fingerprint(domain, "valid") != before
    assert source_fingerprint(_load(tmp_path, {"files": ["a.jsonl"]}, held_out=0.2), "train") != before
    (tmp_path / "a.jsonl").write_bytes(_jsonl([*TEXTS, "one more"]))
    assert source_fingerprint(domain, "train", tmp_path / "memo") != before


_LONG_LINE = """
import resource, sys
from lifelong.errors import InputError
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.cards.documents import read_documents
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    list(read_documents(load_domain(sys.argv[1]), "train"))
except InputError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_line_beyond_the_limit_is_not_held_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"text": "' + b"x" * 200_000_000 + b'"}\n')
    domain = _load(tmp_path, {"files": ["a.jsonl"]}, max_document_bytes="4 MiB")
    command = [sys.executable, "-c", _LONG_LINE, str(domain.path)]
    message, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "a.jsonl:1: a line of 200,000,013 bytes; max_document_bytes" in message
    assert int(grown) < 100, "megabytes"


def test_a_gated_data_set_without_a_token_says_how_to_log_in(tmp_path, monkeypatch):
    import datasets
    import httpx
    from huggingface_hub.errors import GatedRepoError

    def gated(*_, **__):
        response = httpx.Response(401, request=httpx.Request("GET", "https://huggingface.co"))
        raise datasets.exceptions.DatasetNotFoundError("a/b is a gated dataset") from GatedRepoError(
            "no", response=response
        )

    monkeypatch.setattr(datasets, "load_dataset_builder", gated)
    card = tmp_path / "d.yaml"
    card.write_text("name: d\nsource: {hub: a/b}\n")
    with pytest.raises(
        InputError, match=r"d.yaml: source.hub: a/b: is gated on the hub: ask for access .*hf auth login.*HF_TOKEN"
    ):
        list(read_documents(load_domain(card), "train"))


def test_a_limit_that_no_reader_can_have_is_refused_with_its_line(tmp_path):
    card = tmp_path / "d.yaml"
    card.write_text("name: d\nsource: {files: [d.jsonl]}\nmax_document_bytes: 9223372036854775807\n")
    with pytest.raises(InputError, match=r"d.yaml:3: max_document_bytes: input should be less than or equal to"):
        load_domain(card)
