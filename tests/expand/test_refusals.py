"""Slips and broken folders: one message each, exit code 2, at once, and nothing is left on the disk."""

import json
import time
import types

import pytest
import torch
from typer.testing import CliRunner

from lifelong.cli import app
from lifelong.errors import ExpansionError
from lifelong.expand import expand_checkpoint, expand_model
from tests.expand.models import tiny


@pytest.fixture
def folder(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def refused(*arguments):
    result = CliRunner().invoke(app, ["expand", *map(str, arguments)])
    assert result.exception.exit_code == 2
    return str(result.exception)


@pytest.mark.parametrize(("size", "message"), [
    (("--vocab-size", 3_000_000_000), "vocab_size: 3000000000 is more than any model has; at most 100,000,000"),
    (("--layers", 1_000_000), "layers: 1000000 is more than any model has; at most 10,000"),
    (("--hidden-size", 6_000_000), "hidden_size: 6000000 is more than any model has; at most 262,144"),
    (("--hidden-size", 42 * 10**18), "hidden_size: 42000000000000000000 is more than any model has"),
    (("--hidden-size", 200_000, "--vocab-size", 90_000_000), "are free there"),
    (("--layers", 0), "layers: 0 is smaller than the model's 2"),
    (("--layers", -3), "layers: -3 is smaller than the model's 2"),
    (("--layers", 3, "--verify", "some"), "expand --verify: full, quick or none, not 'some'"),
])  # fmt: skip
def test_sizes_that_cannot_be_are_refused_at_once(folder, size, message):
    started = time.process_time()
    assert message in refused(folder, folder.parent / "grown", *size)
    assert time.process_time() - started < 10
    assert [path.name for path in folder.parent.iterdir()] == ["small"]


def test_a_model_that_memory_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: types.SimpleNamespace(available=10**6))
    with pytest.raises(ExpansionError, match=r"takes about 0.0\d+ GB of memory, and 0.001 GB are free"):
        expand_model(tiny("llama"), hidden_size=2400)


def test_places_that_cannot_hold_the_result_are_refused_before_the_work(folder, tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "x")
    assert "already exists" in refused(folder, tmp_path / "dangling", "--layers", 3)
    assert "is no folder that you may write to" in refused(folder, folder / "config.json" / "out", "--layers", 3)


def test_folders_that_are_no_checkpoint_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    out = tmp_path / "out"
    assert "there is no such folder" in refused(tmp_path / "nothing", out, "--layers", 3)
    assert "no config.json in this folder" in refused(tmp_path / "empty", out, "--layers", 3)
    assert "is an adapter, not a model" in refused(tmp_path / "adapter", out, "--layers", 3)
    tiny("llama").config.save_pretrained(tmp_path / "adapter")
    assert "holds an adapter beside the model" in refused(tmp_path / "adapter", out, "--layers", 3)
    assert not out.exists()


def test_a_tokenizer_larger_than_the_vocabulary_is_mentioned(folder):
    vocabulary = {str(number): number for number in range(80)}
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": {"vocab": vocabulary}}))
    report = expand_checkpoint(folder, folder.parent / "grown", targets={"layers": 3})
    assert "the tokenizer has 80 tokens, the model 61: grow vocab_size to 80" in report.notes


def test_what_belongs_to_a_checkpoint_is_carried_along(folder):
    names = [
        "README.md", "LICENSE", "LICENSE.txt", "NOTICE", "preprocessor_config.json", "processor_config.json",
        "video_preprocessor_config.json", "generation_config.json", "chat_template.jinja", "chat_template.json",
        "additional_chat_templates/tool.jinja", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "merges.txt", "spiece.model", "tekken.json", "qwen.tiktoken",
    ]  # fmt: skip
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{{}} {name}")
    expand_checkpoint(folder, folder.parent / "grown", targets={"layers": 3})
    for name in names:
        assert (folder.parent / "grown" / name).read_bytes() == (folder / name).read_bytes()


def test_levels_of_verification(folder, tmp_path):
    quick = expand_checkpoint(folder, tmp_path / "quick", targets={"hidden_size": 36}, verify="quick")
    assert quick.max_logit_difference_float64 < 1e-12
    assert quick.max_logit_difference_bfloat16 is None
    none = expand_checkpoint(folder, tmp_path / "none", targets={"hidden_size": 36}, verify="none")
    assert none.max_logit_difference_float64 is None
    assert "logits were not compared (verify: none)" in none.notes
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("quick", "none")]
    assert files[0] == files[1]


@pytest.mark.parametrize("family", ["deepseek_v3", "falcon_h1"])
def test_a_family_without_a_table_is_refused(tmp_path, family):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    assert "there is no family for model_type" in refused(tmp_path, tmp_path / "out", "--layers", 3)


def test_new_entries_of_sixteen_bits_are_normal():
    from lifelong.expand.tensors import Draw

    for dtype in (torch.bfloat16, torch.float16):
        drawn = Draw.of(0, "weight").normal((400, 500), dtype).double()
        assert abs(float(drawn.mean())) < 0.01
        assert abs(float(drawn.std()) - 1) < 0.01
        assert float(drawn.abs().max()) > 4
