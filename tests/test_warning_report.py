"""News of a library does not fail the default run, and is shown; the strict run fails."""

import pytest

from tests.warning_report import ROOT

GROWS = """
import functools
import warnings

import transformers

from lifelong.expand import expand_model

def test_growth(monkeypatch):
    forward = transformers.LlamaForCausalLM.forward

    @functools.wraps(forward)
    def deprecating(*args, **kwargs):
        warnings.warn("`use_cache` is deprecated and will be removed in version 9.0", FutureWarning, stacklevel=2)
        return forward(*args, **kwargs)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", deprecating)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **sizes))
    assert expand_model(model, layers=2)[0].config.num_hidden_layers == 2
"""


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--strict-warnings",), 1)])
def test_a_new_deprecation_in_transformers_is_shown_and_fails_only_the_strict_run(tmp_path, capfd, options, code):
    (tmp_path / "test_grows.py").write_text(GROWS)
    settings = (
        "-c",
        str(ROOT / "pyproject.toml"),
        "-p",
        "tests.warning_report",
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
    )
    assert pytest.main([*settings, *options, "-p", "no:xdist", str(tmp_path / "test_grows.py")]) == code
    if not code:
        assert "x a library: FutureWarning: `use_cache` is deprecated" in capfd.readouterr().out
