"""Text on a web server: ranges alone travel, a connection that breaks is made again, and refusals say what to do."""

import gzip
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lifelong.errors import InputError
from lifelong.stream import shards
from lifelong.stream.cards import remote
from lifelong.stream.cards.documents import read_documents
from lifelong.stream.cards.domain import load_domain
from lifelong.stream.shards import ShardedCorpus
from tests.stream.conftest import sentences

pytest.importorskip("aiohttp")


class Server(ThreadingHTTPServer):
    """Files by name; counts what is sent, and breaks off as many answers as it is told to."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.sent, self.breaks = folder, 0, 0

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        size = len(data)
        given = self.headers.get("Range")
        if given and body:
            begin, end = given.removeprefix("bytes=").split("-")
            data, status = data[int(begin) : int(end) + 1], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", str(hash((path.stat().st_mtime_ns, size))))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{int(begin) + len(data) - 1}/{size}")
        self.end_headers()
        if not body:
            return
        if self.server.breaks > 0:
            self.server.breaks -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            self.connection.close()
            return
        self.server.sent += len(data)
        self.wfile.write(data)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    remote._facts.cache_clear()
    (tmp_path / "files").mkdir()
    made = Server(tmp_path / "files")
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def card(tmp_path, urls):
    path = tmp_path / "web.yaml"
    path.write_text(json.dumps({"name": "web", "source": {"files": urls}}))
    return load_domain(path, allow_paths=True)


def write(server, name, rows):
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    path = server.folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": rows}), path, row_group_size=20)
    else:
        path.write_bytes(gzip.compress(lines.encode()) if name.endswith(".gz") else lines.encode())


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_connection_that_breaks_is_made_again(server, tmp_path, name):
    write(server, name, sentences(1, 200))
    server.breaks = 3
    domain = card(tmp_path, [server.url(name)])
    found = [document.text for document in read_documents(domain, "train")]
    assert 150 < len(found) < 200
    assert set(found) <= set(sentences(1, 200))
    assert server.breaks == 0


def test_no_more_travels_than_the_budget_needs(server, tmp_path, tokenizer, monkeypatch):
    write(server, "a.jsonl", sentences(1, 3000))
    monkeypatch.setattr(shards, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(shards, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(remote, "REQUEST_BYTES", 8192)
    given = {"sequence_length": 16, "num_blocks": 30, "seed": 0, "stage": 0, "cache_dir": tmp_path / "cache"}
    corpus = ShardedCorpus.of(card(tmp_path, [server.url("a.jsonl")]), tokenizer, **given)
    corpus.begin()
    corpus.close()
    assert len(corpus) >= 30
    assert 10_000 < server.sent < 100_000 < corpus.pieces.num_bytes


def test_a_server_that_stays_away_is_one_message(server, tmp_path):
    write(server, "a.jsonl", sentences(1, 50))
    domain = card(tmp_path, [server.url("a.jsonl")])
    server.breaks = 1000
    with pytest.raises(InputError, match=r"http://127.*a\.jsonl.* cannot be read"):
        list(read_documents(domain, "train"))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("ftp://host/a.jsonl", r"ftp:// is not one of s3://, gs://"),
        ("file:///etc/passwd", r"file:// is not one of"),
        ("s3://bucket/a.jsonl", r"s3:// needs a package that is missing: pip install s3fs"),
    ],
)
def test_what_cannot_be_read_from_is_refused(tmp_path, pattern, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as where it is not installed
    with pytest.raises(InputError, match=said):
        list(read_documents(card(tmp_path, [pattern]), "train"))


def test_a_file_that_is_not_there(server, tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl' is not there"):
        list(read_documents(card(tmp_path, [server.url("none.jsonl")]), "train"))


def test_a_card_from_elsewhere_may_not_ask_a_network_unseen(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "web.yaml"
    path.write_text(json.dumps({"name": "web", "source": {"files": ["https://host/a.jsonl"]}}))
    with pytest.raises(InputError, match=r"https://host/a\.jsonl"):
        load_domain(path)
