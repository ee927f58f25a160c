"""Growth from folder to folder: shards, refusals, and that nothing half-written is ever left."""

import gc
import json
import os
import re
import signal
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lifelong.cli import app
from lifelong.errors import ExpansionError, InputError, UnknownNameError
from lifelong.expand import (
    ExpansionMap,
    checkpoint,
    expand_checkpoint,
    expand_model,
    expansion_map,
    explain_expansion,
    plan_expansion,
)
from tests.expand.models import batch, shapes, tiny

TARGETS = {"hidden_size": 40, "layers": 3}


@pytest.fixture
def folder(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def nothing_left(path):
    return sorted(entry.name for entry in path.parent.iterdir()) == ["small"]


def test_shards_in_shards_out(folder, tmp_path):
    tiny("llama").save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    told = []
    report = expand_checkpoint(
        str(tmp_path / "sharded"), tmp_path / "grown", targets=TARGETS, max_shard_bytes=30_000,
        progress=lambda text, fraction: told.append((text, fraction)),
    )  # fmt: skip
    assert report.passed
    files = sorted((tmp_path / "grown").glob("*.safetensors"))
    assert len(files) > 2
    assert [fraction for _, fraction in told] == sorted(fraction for _, fraction in told)
    assert told[-1][1] == 1.0
    # the same weights as in one file
    expand_checkpoint(str(folder), tmp_path / "whole", targets=TARGETS)
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    parts = {name: value for file in files for name, value in load_file(file).items()}
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    grown = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "grown")
    model = tiny("llama")
    ids = batch(model)["input_ids"]
    assert torch.allclose(grown(ids).logits, model(ids).logits, atol=1e-4)


def test_the_map_beside_the_checkpoint_brings_old_weights_to_the_new_size(folder, tmp_path):
    expand_checkpoint(str(folder), tmp_path / "grown", targets=TARGETS, strategy="pairs", seed=4)
    written = json.loads((tmp_path / "grown" / "expansion.json").read_text())
    weights = ExpansionMap.from_json(written["map"]).apply_weights(load_file(folder / "model.safetensors"))
    grown = load_file(tmp_path / "grown" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in grown.items())
    assert written["max_logit_difference_float64"] < 1e-10


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_model_too_large_to_hold_is_compared_module_by_module(tmp_path, monkeypatch, family):
    tiny(family).save_pretrained(tmp_path / "small")
    shape = {"hidden_size": 48, "layers": 3}
    usual = expand_checkpoint(str(tmp_path / "small"), tmp_path / "usual", targets=shape)
    monkeypatch.setattr("lifelong.expand.lazy.KEEP_BYTES", 0)
    monkeypatch.setattr("lifelong.expand.lazy.BLOCK_BYTES", 1000)
    report = expand_checkpoint(str(tmp_path / "small"), tmp_path / "grown", targets=shape, verify="full")
    assert report.passed
    for name in ("float64", "float32", "bfloat16"):
        key = f"max_logit_difference_{name}"
        rounding = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 0.1}[name]  # sums in another order
        assert getattr(report, key) == pytest.approx(getattr(usual, key), abs=rounding)


def test_a_dtype_stays(tmp_path):
    tiny("llama").to(torch.bfloat16).save_pretrained(tmp_path / "small")
    report = expand_checkpoint(str(tmp_path / "small"), tmp_path / "grown", targets=TARGETS)
    assert report.passed
    assert {value.dtype for value in load_file(tmp_path / "grown" / "model.safetensors").values()} == {torch.bfloat16}


def test_a_pickled_checkpoint_grows_once_it_is_converted(tmp_path):
    model = tiny("gpt2")
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.save_pretrained(tmp_path / "small")
    torch.save(model.state_dict(), tmp_path / "small" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"only pytorch_model.bin: that is a pickle") as refused:
        expand_checkpoint(str(tmp_path / "small"), tmp_path / "grown", targets={"layers": 3})
    exec(re.search(r'python -c "(.*)"$', str(refused.value))[1])
    report = expand_checkpoint(str(tmp_path / "small"), tmp_path / "grown", targets={"layers": 3})
    assert report.passed


def test_a_missing_shard_is_named(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "small", max_shard_size="20KB")
    lost = sorted((tmp_path / "small").glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(InputError, match=f"shard {lost.name} is missing"):
        expand_checkpoint(str(tmp_path / "small"), tmp_path / "grown", targets=TARGETS)
    assert nothing_left(tmp_path / "grown")


def test_a_missing_parameter_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"lacks 1 parameters of llama: model.layers.1.mlp.up_proj.weight"):
        expand_checkpoint(str(folder), folder.parent / "grown", targets=TARGETS)
    assert nothing_left(folder.parent / "grown")


def test_values_that_are_not_finite_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, :2] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ExpansionError, match=r"model.layers.1.mlp.up_proj.weight' holds 2 values that are not finite"):
        expand_checkpoint(str(folder), folder.parent / "grown", targets=TARGETS)
    assert nothing_left(folder.parent / "grown")


def test_a_file_cut_short_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model.safetensors.*cannot be read as safetensors"):
        expand_checkpoint(str(folder), folder.parent / "grown", targets=TARGETS)
    assert nothing_left(folder.parent / "grown")


def test_the_bias_that_chooses_experts_is_carried(tmp_path):
    """A buffer, not a parameter; it decides which experts a token meets. New layers behind a dense one are dense."""
    model = tiny("glm4_moe")
    model.save_pretrained(tmp_path / "small")
    report = expand_checkpoint(
        str(tmp_path / "small"), tmp_path / "grown", targets={"experts": 8, "layers": 5, "hidden_size": 36}
    )
    grown = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "grown")
    assert report.passed
    assert report.parameters_after == sum(parameter.numel() for parameter in grown.parameters())
    assert (grown.config.first_k_dense_replace, grown.config.num_hidden_layers) == (2, 5)
    bias = model.model.layers[1].mlp.gate.e_score_correction_bias
    assert bias.unique().numel() == 4
    assert torch.equal(grown.model.layers[4].mlp.gate.e_score_correction_bias, bias.repeat(2))


def test_the_first_dense_layers_stay_the_first():
    model = tiny("glm4_moe", layers=3, first_k_dense_replace=1)
    grown, report = expand_model(model, layers=6, placement=[0, 0, 2])
    assert report.passed
    assert grown.config.first_k_dense_replace == 3
    assert [hasattr(layer.mlp, "experts") for layer in grown.model.layers] == [False, False, False, True, True, True]


OTHERS = {"layers": 3, "intermediate_size": 53}


@pytest.mark.parametrize(("family", "settings", "axis", "others", "reason"), [
    ("glm4_moe", {"n_group": 2}, {"experts": 8}, {**OTHERS, "heads": 8}, "experts: 8: glm4_moe with n_group: 2 keeps"),
    ("glm4_moe", {"norm_topk_prob": False}, {"experts": 8}, OTHERS, "experts can grow where norm_topk_prob is True"),
    ("gpt2", {"scale_attn_weights": False}, {"hidden_size": 48, "heads": 4}, {**OTHERS, "hidden_size": 48, "heads": 8},
     "head_dim: 12: gpt2 with scale_attn_weights: False keeps the function only with 6"),
    ("opt", {"layer_norm_elementwise_affine": False}, {"hidden_size": 48}, OTHERS,
     "hidden_size can grow where layer_norm_elementwise_affine is True"),
])  # fmt: skip
def test_a_setting_refuses_the_axis_that_it_forbids_and_no_other(family, settings, axis, others, reason):
    model = tiny(family, **settings)
    assert expand_model(model, **others)[1].passed
    with pytest.raises(ExpansionError, match=reason):
        plan_expansion(model.config, **axis)
    assert not plan_expansion(model.config, approximate=True, **axis).is_exact


@pytest.mark.parametrize("kind", ["config", "weights"])
def test_a_quantised_checkpoint_is_refused(folder, kind):
    if kind == "config":
        settings = json.loads((folder / "config.json").read_text())
        settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
        (folder / "config.json").write_text(json.dumps(settings))
    else:
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
        save_file(weights, folder / "model.safetensors")
    with pytest.raises(ExpansionError, match=r"quantised.*full-precision"):
        expand_checkpoint(str(folder), folder.parent / "grown", targets=TARGETS)
    assert nothing_left(folder.parent / "grown")


def test_a_run_folder_means_the_model_of_its_newest_stage(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.jsonl").write_text("")
    with pytest.raises(InputError, match="without a committed stage"):
        expand_checkpoint(tmp_path / "run", tmp_path / "grown", targets={"layers": 3})
    for name in ("09-old", "10-new"):
        tiny("llama", layers=int(name[:2]) - 8).save_pretrained(tmp_path / "run" / "stages" / name / "model")
    report = expand_checkpoint(tmp_path / "run", tmp_path / "grown", targets={"layers": 3}, verify="quick")
    assert report.source["layers"] == 2
    assert any("newest stage, 10-new, was grown" in note for note in report.notes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral", "gpt2"])
def test_a_parameter_by_rows_is_the_parameter(family, dtype):
    model = tiny(family).to(dtype)
    mapping = expansion_map(plan_expansion(model.config, **{**shapes(family)[-1], "hidden_size": 48}), type(model))
    weights = dict(model.named_parameters(remove_duplicate=False))
    cut = 0
    for name, each in mapping.tensors.items():
        blocks = each.sources and mapping.weight_rows(
            name, lambda old, start, stop: weights[old].detach()[start:stop], dtype, most_bytes=700
        )
        if blocks:
            parts = list(blocks)
            cut += len(parts) > 1
            assert torch.equal(torch.cat(parts), mapping.weight(name, weights)), name
    assert cut > 5


def test_an_unknown_architecture_is_told_how_to_add_one(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UnknownNameError, match=r"add_a_family.md.*no family for model_type .t5.*in all"):
        expand_checkpoint(str(folder), folder.parent / "grown", targets=TARGETS)
    assert nothing_left(folder.parent / "grown")


def test_an_existing_folder_is_not_touched(folder):
    (folder.parent / "grown").mkdir()
    with pytest.raises(InputError, match="already exists"):
        expand_checkpoint(str(folder), folder.parent / "grown", targets=TARGETS)


def test_an_interrupted_growth_leaves_no_half_folder(folder, monkeypatch):
    def interrupted(*_args, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_verify_written", interrupted)
    with pytest.raises(KeyboardInterrupt):
        expand_checkpoint(str(folder), folder.parent / "grown", targets=TARGETS)
    assert nothing_left(folder.parent / "grown")


def test_a_terminated_command_leaves_no_half_folder(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "_verify_written", lambda *_args: os.kill(os.getpid(), signal.SIGTERM))
    usual = signal.getsignal(signal.SIGTERM)
    CliRunner().invoke(app, ["expand", str(folder), str(folder.parent / "grown"), "--layers", "4"])
    assert signal.getsignal(signal.SIGTERM) == usual
    assert nothing_left(folder.parent / "grown")


def test_a_growth_that_is_not_exact_writes_nothing_and_says_so(folder, monkeypatch):
    monkeypatch.setattr("lifelong.expand.width.math.sqrt", lambda value: value)
    result = CliRunner().invoke(app, ["expand", str(folder), str(folder.parent / "grown"), "--head-dim", "16"])
    assert result.exception.exit_code == 3
    assert "not exact: logits differ by" in str(result.exception)
    assert nothing_left(folder.parent / "grown")


def test_a_folder_that_cannot_be_written_is_named(folder):
    with pytest.raises(InputError, match="cannot be written"):
        expand_checkpoint(str(folder), folder / "config.json" / "grown", targets=TARGETS)


def test_explain_loads_no_weights(folder):
    (folder / "model.safetensors").unlink()
    text = explain_expansion(str(folder), {**TARGETS, "head_dim": 16}, placement=[0])
    assert "hidden_size        24 -> 40" in text
    assert "inserted behind layers 0" in text
    assert "config head_dim: 8 -> 16" in text
    assert "float64 below 1e-10" in text
    with pytest.raises(ExpansionError, match="growth never shrinks"):
        explain_expansion(str(folder), {"hidden_size": 16})


def test_the_command_line_takes_every_option(folder):
    out = folder.parent / "grown"
    result = CliRunner().invoke(app, [
        "expand", str(folder), str(out), "--layers", "4", "--placement", "0,0", "--strategy", "clone", "--experts", "3",
        "--experts-per-token", "2", "--positions", "100", "--heads", "8", "--kv-heads", "4", "--json",
    ])  # fmt: skip
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout[result.stdout.index("{") :])
    assert report["target"]["experts"] == 3
    assert transformers.AutoConfig.from_pretrained(out).model_type == "mixtral"
    refused = CliRunner().invoke(app, ["expand", str(folder), str(out), "--layers", "4"])
    assert refused.exception.exit_code == 2
    assert "already exists" in str(refused.exception)


def test_no_file_of_a_checkpoint_stays_open(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "small")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", ResourceWarning)
        expand_checkpoint(tmp_path / "small", tmp_path / "grown", targets={"layers": 3}, verify="quick")
        (tmp_path / "small" / "config.json").write_text(
            (tmp_path / "small" / "config.json").read_text().replace('"vocab_size": 61', '"vocab_size": 62')
        )
        with pytest.raises(InputError, match="shape"):
            expand_checkpoint(tmp_path / "small", tmp_path / "again", targets={"layers": 3})
        gc.collect()
    assert not [str(warning.message) for warning in found if warning.category is ResourceWarning]
