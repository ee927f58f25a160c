"""The same bits in every environment: what is committed does not tell where, or under which variables, it was made."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lifelong.ledger.ledger import read_records
from lifelong.pipeline import environment
from lifelong.pipeline.environment import other_versions_note, package_versions
from lifelong.stream.tokenizers.encoding import Encoder
from lifelong.stream.tokenizers.load import load_tokenizer
from tests.faults.kills import comparable

ROOT = Path(__file__).parents[2]
# the tests run with HF_HUB_OFFLINE=1, in UTF-8 and from the repository
ELSEWHERE = {"LC_ALL": "C", "LANG": "C", "TZ": "Asia/Kolkata", "PYTHONHASHSEED": "7", "HF_HOME": "hub", "HOME": "home"}


def test_another_environment_commits_the_same_bytes(short, finished_short, tmp_path):
    out, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    shutil.copyfile(finished_short / "recipe.yaml", recipe)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "LC_", "LANG"))}
    run = subprocess.run(
        [sys.executable, "-m", "lifelong", "run", str(recipe), "--out", str(out)],
        cwd=tmp_path,
        env={**kept, **ELSEWHERE, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    ours, theirs = comparable(finished_short), comparable(out)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []
    settings = json.loads((out / "stages/00-sea/model/tokenizer_config.json").read_text())
    assert not {"local_files_only", "is_local", "name_or_path"} & set(settings)
    measured = json.loads((out / "stages/00-sea/measured.json").read_text())
    assert measured["computed_with"].pop("peak_memory") > 0
    assert measured["computed_with"] == {"threads": 1, "device": "cpu", "packages": package_versions()}


def test_a_run_begun_by_an_older_version_goes_on(short, finished_short, tmp_path):
    """Its tokenizer, as it stands in the folder, names the environment; the stages to come do not."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(finished_short / "initial" / "tokenizer", folder)
    clean = load_tokenizer(folder)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "is_local": True, "local_files_only": True}))
    old = load_tokenizer(folder)
    assert Encoder(old).fingerprint == Encoder(clean).fingerprint
    old.save_pretrained(tmp_path / "again")
    for path in sorted((finished_short / "initial" / "tokenizer").iterdir()):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_resume_under_other_versions_is_noted(finished_short, monkeypatch):
    committed = read_records(finished_short)[-1].versions
    assert other_versions_note(committed) is None
    monkeypatch.setattr(environment, "package_versions", lambda: {**committed, "torch": "9.9"})
    assert other_versions_note(committed) == (
        f"goes on under other versions, so the last bits may differ: torch {committed['torch']} -> 9.9"
    )
