import json
import subprocess
import sys

import pytest

from tests.support import recipe_data, run_cli, write_domain


def test_help_of_every_verb_loads_no_heavy_library():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom lifelong.cli import app\n"
        "verbs = [[], *[[v] for v in 'run extend plan expand evaluate cache check merge report list schema domain'.split()], ['domain', 'add']]\n"
        "assert all(CliRunner().invoke(app, [*v, '--help']).exit_code == 0 for v in verbs)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'avalanche', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("arguments", "message"), [
    (("run", "quickstrat"), "did you mean 'quickstart'"),
    (("list", "domain"), "did you mean 'domains'"),
    (("schema", "recipes"), "did you mean 'recipe'"),
    (("check", "nowhere"), "is not a run folder"),
    (("report", "nowhere"), "is not a run folder"),
    (("expand", "a", "b"), "name at least one larger size"),
])  # fmt: skip
def test_bad_input_is_one_message_and_exit_code_2(monkeypatch, capsys, arguments, message):
    assert run_cli(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_lists_and_schemas(monkeypatch, capsys):
    for what, expected in (
        ("families", "llama"),
        ("methods", "l2"),
        ("metrics", "bwt"),
        ("recipes", "quickstart"),
        ("domains", "python-stdlib"),
    ):
        assert run_cli(monkeypatch, "list", what) == 0
        assert expected in capsys.readouterr().out.split()
    assert run_cli(monkeypatch, "schema", "recipe") == 0
    assert "stages" in json.loads(capsys.readouterr().out)["properties"]


def test_run_report_check_evaluate_and_plan(monkeypatch, capsys, tmp_path):
    import yaml

    write_domain(tmp_path, "sea")
    data = recipe_data(tmp_path)
    data["stages"] = data["stages"][:1]
    data["tokenizer"]["train"]["vocab_size"] = 300
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data))
    assert run_cli(monkeypatch, "plan", tmp_path / "r.yaml") == 0
    assert "sea" in capsys.readouterr().out
    assert run_cli(monkeypatch, "run", tmp_path / "r.yaml", "--out", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "held-out perplexity" in out
    assert "index.html" in out
    assert run_cli(monkeypatch, "check", tmp_path / "run") == 0
    assert "1 stages" in capsys.readouterr().out
    assert run_cli(monkeypatch, "report", tmp_path / "run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["domains"] == ["sea"]
    assert run_cli(monkeypatch, "report", tmp_path / "run", tmp_path / "run") == 0
    assert "comparison" in capsys.readouterr().out
    assert (
        run_cli(
            monkeypatch, "evaluate", tmp_path / "run", "--domain", tmp_path / "sea.yaml", "--tokens", "300", "--json"
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)[0]["domain"] == "sea"
    assert run_cli(monkeypatch, "expand", tmp_path / "run/stages/00-sea/model", tmp_path / "big", "--layers", "3") == 0
    assert "0.00e+00" in capsys.readouterr().out
    assert (tmp_path / "big/expansion.json").is_file()
    assert run_cli(monkeypatch, "expand", tmp_path / "big", tmp_path / "run", "--layers", "4") == 2
    assert run_cli(monkeypatch, "domain", "show", tmp_path / "sea.yaml") == 0
    assert "60 documents" in capsys.readouterr().out
