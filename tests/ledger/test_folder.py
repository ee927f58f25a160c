import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lifelong
from lifelong.errors import InputError
from lifelong.ledger.folder import (
    COMMITTED_FOLDERS,
    OTHERS,
    CheckpointFolder,
    ReportFolder,
    RoundFolder,
    RunFolder,
    StageFolder,
    WorkFolder,
    _Entry,
    parse_stage_model,
    stage_name,
)
from lifelong.ledger.ledger import model_of


def entries(folder):
    """Every path that a folder names without an argument."""
    found = {}
    for name in dir(type(folder)):
        value = getattr(folder, name)
        if not name.startswith("_") and name not in ("path", "exists", "next_model"):
            found[name] = value.path if isinstance(value, StageFolder | ReportFolder) else value
    return {name: path for name, path in found.items() if isinstance(path, Path)}


def test_a_folder_is_named_by_a_path_or_its_text():
    assert RunFolder("runs/x").path == RunFolder(Path("runs/x")).path == Path("runs/x")
    assert repr(RunFolder("runs/x")) == "RunFolder('runs/x')"


def test_paths_are_where_the_format_says():
    run = RunFolder("x")
    assert run.ledger == Path("x/ledger.jsonl")
    assert run.pending_recipe == Path("x/.work/recipe.yaml")
    assert run.initial.tokenizer == Path("x/initial/tokenizer")
    assert run.stage("initial").path == run.initial.path
    assert run.stage("01-news").losses == Path("x/stages/01-news/losses.json")
    assert run.model("01-news") == Path("x/stages/01-news/model")
    assert run.heldout("news") == Path("x/heldout/news")
    assert run.memory(3) == Path("x/memory/03")
    assert run.tracker("01-news", "train") == Path("x/trackers/01-news-train")
    assert run.rejected("01-news") == Path("x/rejected/01-news")
    assert run.front("01-news") == Path("x/front/01-news.json")
    assert run.task_score("01-news", "acl") == Path("x/downstream/01-news-acl.json")
    assert run.harness("01-news") == Path("x/harness/01-news.json")
    assert run.report.page == Path("x/report/index.html")


def test_a_stage_in_preparation_has_the_names_of_a_committed_one():
    work = RunFolder("x").work("01-news")
    assert work.trained.model == Path("x/.work/01-news/trained/model")
    assert work.grown.expansion == Path("x/.work/01-news/grown/expansion.json")
    assert work.selected.selection == Path("x/.work/01-news/selected/selection.json")
    assert work.recovered.curve == Path("x/.work/01-news/recovered/curve.json")
    assert work.losses_before == Path("x/.work/01-news/before.json")
    assert work.seconds("train") == Path("x/.work/01-news/train-seconds.json")
    assert work.checkpoints("recover") == Path("x/.work/01-news/recover-checkpoints")


def test_no_two_names_share_a_path_and_the_check_knows_every_entry():
    for folder in (RunFolder("x"), RunFolder("x").stage("00-a"), RunFolder("x").work("00-a")):
        named = entries(folder)
        assert len(set(named.values())) == len(named)
    run = RunFolder("x")
    made = [*entries(run).values(), run.tracker("a", "train"), run.rejected("a"), run.harness("a"), run.model("a")]
    assert {run.name_of(path).split("/")[0] for path in made} == {*COMMITTED_FOLDERS, *OTHERS}


def test_the_ledger_lists_paths_from_the_run_folder():
    assert RunFolder("x").name_of(Path("x/stages/00-a/model/config.json")) == "stages/00-a/model/config.json"
    assert RunFolder("").stage("00-a").model.as_posix() == "stages/00-a/model"


def test_stages_are_sorted_by_number_and_other_folders_ignored(tmp_path):
    for name in ("100-c", "02-b", "00-a", ".03-d.partial", "0x-e", "notes"):
        (tmp_path / "stages" / name).mkdir(parents=True)
    (tmp_path / "stages/01-file").write_text("")
    assert [stage.name for stage in RunFolder(tmp_path).stages] == ["00-a", "02-b", "100-c"]
    assert RunFolder(tmp_path / "nowhere").stages == []


def test_the_memory_before_a_stage_is_the_newest_one(tmp_path):
    run = RunFolder(tmp_path)
    assert run.memory_before(5) is None
    for index in (0, 2, 10):
        run.memory(index).mkdir(parents=True)
    assert run.memory_before(10) == run.memory(2)
    assert run.memory_before(11) == run.memory(10)
    assert run.memory_before(0) is None


def test_the_next_stage_starts_from_the_trunk_where_there_is_one(tmp_path):
    stage = StageFolder(tmp_path)
    assert stage.next_model == stage.model
    stage.trunk.mkdir()
    assert stage.next_model == stage.trunk


def test_a_source_is_a_run_or_a_model(tmp_path):
    assert RunFolder.locate(tmp_path) is None
    assert RunFolder.locate("gpt2") is None
    assert model_of("gpt2") == ("gpt2", None)
    with pytest.raises(InputError, match=f"^{str(tmp_path)!r} is not a run folder: it has no ledger.jsonl$"):
        RunFolder(tmp_path).require()
    (tmp_path / "ledger.jsonl").touch()
    located = RunFolder.locate(str(tmp_path))
    assert located is not None
    assert located.require().path == tmp_path
    with pytest.raises(InputError, match="no stage is committed yet"):
        model_of(tmp_path)


def test_a_run_whose_ledger_is_lost_is_still_a_run(tmp_path):
    record = RunFolder(tmp_path).initial.record
    record.parent.mkdir()
    record.touch()
    assert RunFolder(tmp_path).exists


@pytest.mark.parametrize(
    ("source", "stage"),
    [
        ("runs/ki/stages/00-wiki/model", ("ki", 0)),
        ("ki/stages/12-my-news/trunk/", ("ki", 12)),
        ("runs/ki/stages/00-wiki", None),
        ("gpt2", None),
    ],
)
def test_a_stage_is_read_from_the_path_of_its_model(source, stage):
    assert parse_stage_model(source) == stage


def test_stage_names():
    assert [stage_name(index, "news") for index in (-1, 1, 100)] == ["initial", "01-news", "100-news"]


def test_nothing_heavy_is_imported():
    code = "import sys, lifelong.ledger.folder; print([m for m in ('torch', 'numpy', 'yaml', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def spelled():
    """Literals of the package, outside of `ledger/folder.py`, that spell a path of a run folder."""
    kinds = (RunFolder, StageFolder, WorkFolder, RoundFolder, CheckpointFolder, ReportFolder)
    names = {entry.name for kind in kinds for entry in vars(kind).values() if isinstance(entry, _Entry)}
    names |= {*COMMITTED_FOLDERS, *OTHERS}
    package = Path(lifelong.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if path != package / "ledger/folder.py":
            tree = ast.parse(path.read_text())
            joined = {id(node.right) for node in ast.walk(tree) if isinstance(node, ast.BinOp)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    first, slash, _ = node.value.partition("/")
                    if first in names and (slash or id(node) in joined or "." in first):
                        yield path.relative_to(package).as_posix(), node.value


def test_no_other_file_spells_a_path_of_the_run_folder():
    """Two are no runs: the user's cache, and a checkpoint that `lifelong expand` has grown."""
    assert list(spelled()) == [("expand/checkpoint.py", "expansion.json"), ("stream/tokenize.py", ".cache")]
