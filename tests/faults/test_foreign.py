"""A run folder that somebody else made: its hashes hold, and nothing outside of it is read, written or removed.

The chain of a ledger has no key, so every attack here is one whose hashes are right.
"""

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lifelong.errors import CorruptionError, InputError, LifelongError
from lifelong.expand import expand_checkpoint
from lifelong.expand.shards import INDEX
from lifelong.files import named_entry, outsiders, remove_tree
from lifelong.inherit.cache import CacheSettings, CacheWriter, TargetCache
from lifelong.inherit.sparse import TauSampler, scheme_to_json
from lifelong.ledger.history import read_history
from lifelong.ledger.ledger import Ledger, check_run, committed_stages, read_records
from lifelong.ledger.line import Line
from lifelong.pipeline.loop import extend_run, run_recipe
from lifelong.recipe.files import parse_recipe
from lifelong.recipe.outside import outside_names
from lifelong.replay.memory import ReplayMemory
from tests.support import recipe_data, run_cli


def forge(run: Path, number: int, **changes) -> None:
    """Change line `number` of the ledger, and make every hash from there on right again."""
    parent, lines = "", []
    for place, line in enumerate((run / "ledger.jsonl").read_bytes().splitlines()):
        data = {**json.loads(line), "parent": parent}
        data.pop("sha256")
        if place == number:
            for key, value in changes.items():
                data[key] = {**data[key], **value} if isinstance(value, dict) else value
                if key == "files" and value is None:
                    data[key] = {}
        body = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
        parent = hashlib.sha256(body).hexdigest()
        lines.append(b'{"sha256":"' + parent.encode() + b'",' + body[1:])
    (run / "ledger.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def victim(run):
    """A folder beside the run, which holds something."""
    folder = run.parent / "victim"
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    yield folder
    assert (folder / "precious.txt").read_text() == "mine"


NAMES = ["../../victim", "{victim}", "..", ".", "", "00-sea/../../../victim", "01-sea", "00-sea\n", "00-farm", 7, None]


@pytest.mark.parametrize(
    ("verb", "name"), [*(("extend", name) for name in NAMES), ("run", NAMES[0]), ("check", NAMES[1]), ("report", None)]
)
def test_a_name_that_leads_out_removes_nothing(run, victim, monkeypatch, capsys, name, verb):
    forge(run, 1, name=name.format(victim=victim) if isinstance(name, str) else name)
    before = everything(run)
    recipe = run / "recipe.yaml"
    arguments = {"extend": ["--domain", "licences", "--tokens", "1k"], "run": []}.get(verb, [])
    first = [recipe, "--out", run] if verb == "run" else [run]
    assert run_cli(monkeypatch, verb, *first, *arguments) == 2
    assert "ledger.jsonl:2: stage 0 is named" in capsys.readouterr().err
    assert {k: v for k, v in everything(run).items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }


FORGED = {
    "domain that leads out": ({"domain": "../../victim", "name": "00-../../victim"}, "is not the name of a domain"),
    "number of another stage": ({"index": 5, "name": "05-sea"}, r"is not a path of 05-sea"),
    "no files and the number of another stage": (
        {"index": 5, "name": "05-sea", "files": None},
        "it is of stage 5, the line before it of stage -1",
    ),
    "number that is none": ({"index": "0"}, "is not the number of a stage"),
    "device": ({"files": {"/dev/zero": "0" * 64}}, "file '/dev/zero' is not a path"),
    "absolute file": ({"files": {"/etc/passwd": "0" * 64}}, "is not a path"),
    "file above": ({"files": {"stages/00-sea/../../../victim/precious.txt": "0" * 64}}, "is not a path"),
    "file of another stage": ({"files": {"stages/01-farm/losses.json": "0" * 64}}, "is not a path of 00-sea"),
    "file of nobody": ({"files": {"recipe.yaml": "0" * 64}}, "is not a path"),
    "hash that is none": ({"files": {"stages/00-sea/x": "../x"}}, "has no SHA-256"),
    "files that are a list": ({"files": []}, "files is not a mapping"),
    "cost that is no mapping": ({"cost": {"train": 3}}, "it is not the record of a stage|cost is not a mapping"),
}


@pytest.mark.parametrize("attack", FORGED)
def test_a_forged_record_is_refused_before_it_is_used(run, victim, attack):
    changes, reason = FORGED[attack]
    forge(run, 1, **changes)
    with pytest.raises(CorruptionError, match=reason):
        read_records(run)
    assert len(check_run(run)) == 1
    with pytest.raises(CorruptionError, match=reason), Ledger.open(run):
        pass
    with pytest.raises(CorruptionError, match=reason):
        committed_stages(run)


@given(name=st.text(st.sampled_from("./\\\0a-0"), max_size=12))
def test_no_list_of_files_leads_out_of_its_folder(tmp_path_factory, name):
    folder = Path("/run/stages/00-sea")
    try:
        path = named_entry(folder, name)
    except CorruptionError:
        return
    assert os.path.normpath(path).startswith(f"{folder}/")
    assert Path(os.path.normpath(path)).parent == folder


def test_a_stage_may_only_bring_its_own_record(run):
    """The ledger is gone: a folder is adopted by the record inside it."""
    (run / "ledger.jsonl").unlink()
    shutil.move(run / "stages" / "00-sea", run / "stages" / "00-town")
    with pytest.raises(CorruptionError, match="it is the record of '00-sea'"), Ledger.open(run):
        pass


LINKS = [".work", ".cache", "report", "memory", "stages/00-sea", "stages/00-sea/losses.json", ".lock", "recipe.yaml"]


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("verb", ["check", "report", "extend"])
def test_nothing_is_followed_out_of_the_folder(run, victim, monkeypatch, capsys, name, verb):
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(victim if "." not in path.name[1:] and name != ".lock" else victim / "precious.txt")
    arguments = ["--domain", "licences", "--tokens", "1k"] if verb == "extend" else []
    assert run_cli(monkeypatch, verb, run, *arguments) == 2
    assert f"but {name} is not (a symbolic link" in capsys.readouterr().err
    assert list(victim.iterdir()) == [victim / "precious.txt"]


def test_a_pipe_does_not_hang(run):
    (run / "stages" / "00-sea" / "losses.json").unlink()
    os.mkfifo(run / "stages" / "00-sea" / "losses.json")
    signal.alarm(20)
    try:
        for reading in (check_run, read_history, committed_stages):
            with pytest.raises(CorruptionError, match=r"losses\.json is not"):
                reading(run)
    finally:
        signal.alarm(0)


def test_trackers_may_keep_links_of_their_own(run):
    folder = run / "trackers" / "00-sea-train" / "wandb"
    folder.mkdir(parents=True)
    (folder / "latest-run").symlink_to(folder)
    assert list(outsiders(run / "trackers", depth=1)) == []
    assert check_run(run) == []


def test_removing_a_link_leaves_what_it_leads_to(run, victim):
    (run / "link").symlink_to(victim)
    remove_tree(run / "link")
    assert not (run / "link").is_symlink()


def test_the_list_of_a_memory_names_its_own_files(run, victim):
    path = max((run / "memory").iterdir()) / "memory.json"
    facts = json.loads(path.read_text())
    facts["experiences"][0]["file"] = "../../../victim/precious.txt"
    path.write_text(json.dumps(facts))
    with pytest.raises(CorruptionError, match=r"names '\.\./\.\./\.\./victim/precious\.txt'"):
        ReplayMemory(path.parent)


def test_the_list_of_a_cache_names_its_own_shards(tmp_path):
    settings = CacheSettings(scheme_to_json(TauSampler()), 1.0, 32, "0" * 64, "0" * 64, "clm", 32)
    CacheWriter(tmp_path / "cache", settings).finish()
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    manifest["shards"] = [{"name": "../../x.arrow", "blocks": 1, "tokens": 1, "bytes": 1}]
    (tmp_path / "cache" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptionError, match=r"names '\.\./\.\./x\.arrow'"):
        TargetCache(tmp_path / "cache")


def test_the_last_line_can_be_compared_with_one_that_was_published(run, monkeypatch, capsys):
    assert run_cli(monkeypatch, "check", run) == 0
    said = capsys.readouterr().out
    head = Line.of(read_records(run)[-1]).sha256
    assert said.rstrip().endswith(f"last line {head}")
    assert run_cli(monkeypatch, "check", run, "--expect", head[:16]) == 0
    assert run_cli(monkeypatch, "check", run, "--expect", head[:6]) == 2
    forge(run, 2, notes=["nothing happened"])
    for name in ("01-farm", "02-law"):
        line = next(x for x in (run / "ledger.jsonl").read_bytes().splitlines() if f'"{name}"'.encode() in x)
        (run / "stages" / name / "record.json").write_bytes(line + b"\n")
    capsys.readouterr()
    assert run_cli(monkeypatch, "check", run) == 0  # a chain has no key
    assert run_cli(monkeypatch, "check", run, "--expect", head) == 2
    assert "but it is another ledger" in capsys.readouterr().err


# --- what a stranger's recipe names -------------------------------------------------------------------------------


@pytest.fixture
def stranger(cards, tmp_path, monkeypatch):
    """A finished run whose recipe was written on another machine, with a teacher that lies elsewhere."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "their-state"))
    tokenizer = {"train": {"kind": "bpe", "vocab_size": 300}}
    data = recipe_data(cards, replay=None, tokenizer=tokenizer, evaluate={"tokens": 300, "samples": 0})
    first = {**data, "inherit": None, "stages": [{"domain": str(cards / "sea.yaml"), "tokens": 1000}]}
    run_recipe(parse_recipe(first), tmp_path / "teacher")
    teacher = str(tmp_path / "teacher" / "stages" / "00-sea" / "model")
    second = {
        **first, "inherit": {"teacher": teacher}, "tokenizer": {"checkpoint": str(tmp_path / "teacher/initial/tokenizer")},
    }  # fmt: skip
    run_recipe(parse_recipe(second), tmp_path / "run")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "my-state"))
    return tmp_path / "run", teacher


def test_what_a_strangers_recipe_names_is_listed_and_asked_about(cards, stranger, monkeypatch, capsys):
    run, teacher = stranger
    before = everything(run)
    command = ("extend", run, "--domain", cards / "farm.yaml", "--tokens", "600")
    assert run_cli(monkeypatch, *command) == 2
    message = capsys.readouterr().err
    assert f"inherit.teacher: {teacher}" in message
    assert "--allow-paths" in message
    assert {k: v for k, v in everything(run).items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }
    assert run_cli(monkeypatch, *command, "--allow-paths") == 0
    extend_run(run, cards / "town.yaml", tokens=600)  # it is remembered
    assert [record.domain for record in committed_stages(run)] == ["sea", "farm", "town"]


def test_who_wrote_a_recipe_here_is_not_asked(cards, stranger, monkeypatch):
    run, _ = stranger
    monkeypatch.setenv("XDG_STATE_HOME", str(run.parent / "their-state"))
    extend_run(run, cards / "farm.yaml", tokens=600)


def test_without_a_home_folder_it_is_asked_every_time(cards, stranger, monkeypatch):
    run, _ = stranger
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    extend_run(run, cards / "farm.yaml", tokens=600, allow_paths=True)
    with pytest.raises(InputError, match="--allow-paths"):
        extend_run(run, cards / "town.yaml", tokens=600)


def test_everything_that_a_recipe_reaches_is_listed(cards):
    data = recipe_data(
        cards,
        inherit={"teacher": {"by_domain": {"sea": "org/teacher", "farm": {"cache": "/caches/law"}}}},
        facts={"file": "/etc/facts.jsonl", "at": [0.5], "stage": 1},
        methods=[{"name": "ewc"}],
    )
    data["train"] = {**data["train"], "report_to": "wandb", "deepspeed": "/etc/zero.json", "push_to_hub": False}
    data["stages"][1]["select"] = {"by": "challenge", "model": "org/small"}
    names = outside_names(parse_recipe(data), 1)
    for expected in (
        "facts.file: /etc/facts.jsonl",
        "train.report_to: wandb",
        "train.deepspeed: /etc/zero.json",
        f"stages[1].domain: {cards / 'farm.yaml'}",
        "stages[1].select.model: org/small",
    ):
        assert expected in names
    assert any("org/teacher" in name for name in names)
    assert any("/caches/law" in name for name in names)
    assert not any("sea.yaml" in name or "push_to_hub" in name for name in names)
    plain = parse_recipe(yaml.safe_load("{name: x, model: {checkpoint: org/m}, stages: [{domain: news, tokens: 1k}]}"))
    assert outside_names(plain) == []


def test_the_index_of_a_checkpoint_names_its_own_shards(run, tmp_path):
    model = run / "stages" / "00-sea" / "model"
    (model / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (model / INDEX).write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(LifelongError, match=r"names '\.\./secret\.safetensors', which is not a file of this"):
        expand_checkpoint(model, tmp_path / "grown", targets={"layers": 8})
